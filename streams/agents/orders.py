"""Every change of an order as an event of its own: what it is now, what it was before, and the customer's segment."""

import pyarrow as pa
import pyarrow.compute as pc

from schemas import envelope
from streams.agent import Agent, StepContext
from streams.lookup import Lookup
from streams.steps import enrich

CUSTOMERS = Lookup("customers", topic="shop.public.customers", key="id", columns=("country", "segment"))

KEPT = ("customer_id", "country", "status", "amount", "created_at", "updated_at")


def changes(batch: pa.RecordBatch, ctx: StepContext) -> pa.RecordBatch:
    """One row an event: the order as it is, or as it last was when it is deleted."""
    batch = ctx.drop(batch, pc.not_equal(envelope.operations(batch), "t"), "truncation")
    before, after = envelope.row_batch(batch, "before"), envelope.row_batch(batch, "after")
    there = envelope.has_row(batch, "after")
    columns = {name: pc.if_else(there, after.column(name), before.column(name)) for name in ("id", *KEPT)}
    return pa.RecordBatch.from_pydict(
        {
            "order_id": columns["id"],
            **{name: columns[name] for name in KEPT},
            "previous_status": before.column("status"),
            "previous_amount": before.column("amount"),
            "op": envelope.operations(batch),
            "source_offset": batch.column("source_offset"),
        }
    )


agent = Agent(
    name="orders",
    source="shop.public.orders",
    output="clean.orders",
    lookups=(CUSTOMERS,),
    steps=(changes, enrich("customers", key="customer_id", columns=["segment"])),
)
