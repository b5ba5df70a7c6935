"""Whether the workers of Connect that share a group are one cluster: then they all know the same connectors.

Clusters that were given one `group.id` but different config topics are assigned each other's connectors, which they do
not know: nobody runs these, while Connect's status still says RUNNING. A worker is asked at the URL that it tells its
group; one that does not answer there is not judged.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from urllib.parse import urlsplit

from connectors.connect import Connect
from headrace.config import KafkaSettings
from headrace.errors import HeadraceError
from headrace.kafka import admin

PROTOCOL = "connect"
ANSWER_SECONDS = 3.0
# A connector that was just made or removed is not known to all workers at once.
SPREAD_SECONDS = 2.0
NAMED = 3
POLL_SECONDS = 0.5


def divided(kafka: KafkaSettings, workers: Collection[str], patience: float = 0.0) -> str | None:
    """One sentence when the group of any of these workers (`host:port`) is not one cluster, else empty; None when that
    cannot be known, after waiting `patience` seconds for it: it rebalances, or workers do not answer.

    Raises as `headrace.kafka.admin` does.
    """
    deadline = time.monotonic() + patience
    while (found := _divided(kafka, workers)) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found


def _divided(kafka: KafkaSettings, workers: Collection[str]) -> str | None:
    found: str | None = ""
    for group, members in admin.group_members(kafka, PROTOCOL).items():
        if not all(members):
            return None
        urls = {url_of(metadata) for metadata in members}
        if len(urls) > 1 and any(urlsplit(url).netloc in workers for url in urls):
            known = known_by(urls)
            said = difference(group, known)
            if said:
                time.sleep(SPREAD_SECONDS)
            if said and said == difference(group, known_by(urls)):
                return said
            if said or len(known) < len(urls):
                found = None
    return found


def url_of(metadata: bytes) -> str:
    """The URL in what a worker tells its group, in any version of Connect's protocol: it follows the version."""
    return metadata[4 : 4 + int.from_bytes(metadata[2:4], "big")].decode()


def known_by(urls: Iterable[str]) -> dict[str, frozenset[str]]:
    """The connectors that each worker knows of itself."""
    found = {}
    for url in sorted(urls):
        with closing(Connect(url, timeout=ANSWER_SECONDS)) as connect:
            try:
                found[url] = frozenset(connect.call("GET", "/connectors"))
            except HeadraceError:  # starting, gone, or not reachable from here: no evidence
                continue
    return found


def difference(group: str, known: Mapping[str, frozenset[str]]) -> str:
    """That not all workers know the same connectors; empty when they do. Pure."""
    if len(set(known.values())) < 2:
        return ""
    common = frozenset.intersection(*known.values())
    shown = "; ".join(f"{url} {_names(sorted(names - common))}" for url, names in known.items())
    return (
        f"workers of Connect's group {group} do not know the same connectors ({shown}): several clusters share it, and "
        "what is said to run may not; give each a group.id and topics of its own"
    )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) or "none") + more
