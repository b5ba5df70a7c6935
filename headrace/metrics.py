"""Metrics that every process shows. Names are `headrace_<stage>_<what>_<unit>`; labels are never keys or ids of rows.

The first number to look at is `headrace_flow_*`: rows in, rows out, rows quarantined, rows dropped (by rule) for each
flow (a topic read by an agent, a sink or a bridge), so that "running, but empty" shows.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info

FLOW = ("flow", "topic")

ROWS_IN = Counter("headrace_flow_rows_in", "Records read", FLOW)
ROWS_OUT = Counter("headrace_flow_rows_out", "Records proved in the target", FLOW)
ROWS_QUARANTINED = Counter("headrace_flow_rows_quarantined", "Records sent to the quarantine", (*FLOW, "rule"))
ROWS_DROPPED = Counter("headrace_flow_rows_dropped", "Records dropped by a named rule", (*FLOW, "rule"))
LAG = Gauge("headrace_flow_lag_records", "Records in Kafka that the flow has not proved in its target", FLOW)
LAST_RECORD = Gauge(
    "headrace_flow_last_record_processed_timestamp_seconds",
    "Kafka timestamp of the newest record proved",
    FLOW,
)
FRESHNESS = Histogram(
    "headrace_flow_freshness_seconds",
    "Time from a record's Kafka timestamp to its proof in the target",
    FLOW,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300),
)
BATCH_ROWS = Histogram("headrace_flow_batch_rows", "Records in a batch", FLOW, buckets=(1, 10, 100, 1e3, 1e4, 1e5, 1e6))
COMMIT_SECONDS = Histogram(
    "headrace_sink_commit_seconds",
    "Time of one table commit",
    ("table",),
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAST_COMMIT = Gauge("headrace_sink_last_commit_timestamp_seconds", "When the table was last committed", ("table",))
SCHEMA_CHANGES = Counter(
    "headrace_sink_schema_changes", "Columns added, widened or filled as their source changed", ("table", "change")
)
BUILD = Info("headrace_build", "Version of the running code", registry=REGISTRY)
