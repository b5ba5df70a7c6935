"""What a table remembers about its topic, as table properties set in the same commit as the rows.

One property per topic and partition (a shared value would let two writers overwrite each other):
`headrace.offset.<topic>.<partition>` the next offset to read; `headrace.position.<topic>.<partition>` the highest log
position of a change topic; `headrace.newest.<topic>.<partition>` the latest time of a change up to there (ms since the
epoch); `headrace.floor.<topic>` the position below which none of its rows is live;
`headrace.ends.<topic>` the truncations and baselines that a history has met, `headrace.ended.<topic>` those that its
rows have (see `ends`); `headrace.key-since.<topic>` the first position under the present key;
`headrace.source.<topic>.<partition>.<lane>` the highest source offset of a derived topic; `headrace.identity.<topic>`
the cluster and topic id that the offsets belong to; `headrace.gap.<topic>.<partition>` the records that the table never
got: `before` it existed, or lost with the decision still `open` or `accepted`.
"""

from __future__ import annotations

from collections.abc import Mapping

COMMIT_ID = "headrace.commit-id"
KEY = "headrace.key"

Properties = Mapping[str, str]


def offset_property(topic: str, partition: int) -> str:
    return f"headrace.offset.{topic}.{partition}"


def position_property(topic: str, partition: int) -> str:
    return f"headrace.position.{topic}.{partition}"


def newest_property(topic: str, partition: int) -> str:
    return f"headrace.newest.{topic}.{partition}"


def floor_property(topic: str) -> str:
    return f"headrace.floor.{topic}"


def ends_property(topic: str) -> str:
    return f"headrace.ends.{topic}"


def ended_property(topic: str) -> str:
    return f"headrace.ended.{topic}"


def key_since_property(topic: str) -> str:
    return f"headrace.key-since.{topic}"


def source_property(topic: str, partition: int, lane: str) -> str:
    return f"headrace.source.{topic}.{partition}.{lane}"


def identity_property(topic: str) -> str:
    return f"headrace.identity.{topic}"


def gap_property(topic: str, partition: int) -> str:
    return f"headrace.gap.{topic}.{partition}"


def stored_offsets(properties: Properties, topic: str) -> dict[int, int]:
    """Next offset by partition; a partition that was never committed is absent."""
    prefix = f"headrace.offset.{topic}."
    found = {}
    for name, value in properties.items():
        if name.startswith(prefix) and (partition := name[len(prefix) :]).isdecimal():
            found[int(partition)] = int(value)
    return found


def source_watermarks(properties: Properties, topic: str, partition: int) -> dict[str, int]:
    """Highest source offset by lane."""
    prefix = source_property(topic, partition, "")
    return {name[len(prefix) :]: int(value) for name, value in properties.items() if name.startswith(prefix)}


def progress_properties(properties: Properties, topic: str) -> list[str]:
    """Names of everything remembered about a topic, for a table that starts over with a new one."""
    kinds = ("offset", "position", "newest", "source", "gap")
    whole = (identity_property, floor_property, ends_property, ended_property, key_since_property)
    return [
        name
        for name in properties
        if name in {name_of(topic) for name_of in whole}
        or any(name.startswith(f"headrace.{kind}.{topic}.") for kind in kinds)
    ]


def topics(properties: Properties) -> list[str]:
    """Topics that a table has been fed from."""
    prefix = identity_property("")
    return sorted(name[len(prefix) :] for name in properties if name.startswith(prefix))


def gaps(properties: Properties, topic: str) -> dict[int, list[str]]:
    """Recorded gaps by partition, each `<first>-<end>:<state>`, end exclusive."""
    prefix = f"headrace.gap.{topic}."
    return {
        int(name[len(prefix) :]): value.split(",")
        for name, value in sorted(properties.items())
        if name.startswith(prefix) and name[len(prefix) :].isdecimal()
    }
