from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from connectors import workers
from headrace.config import KafkaSettings
from headrace.errors import UnavailableError

# As Kafka 4.3 has it: version 2, URL, offset in the config topic, assignment.
MEMBER = b"\x00\x02\x00\x17http://127.0.0.1:19075/\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x84\x00\x02"


def member(url: str) -> bytes:
    return b"\x00\x01" + len(url).to_bytes(2, "big") + url.encode() + bytes(8)


def test_the_url_of_a_member() -> None:
    assert workers.url_of(MEMBER) == "http://127.0.0.1:19075/"
    assert workers.url_of(member("http://b:8083/")) == "http://b:8083/"


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({}, ""),
        ({"a": {"x", "y"}}, ""),
        ({"a": {"x", "y"}, "b": {"y", "x"}}, ""),
        ({"a": {"x", "y"}, "b": set()}, "(a x, y; b none)"),
        ({"a": {"x", "y"}, "b": {"z", "y"}}, "(a x; b z)"),
        ({"a": set("vwxyz"), "b": {"v"}}, "(a w, x, y and 1 more; b none)"),
    ],
)
def test_workers_that_know_other_connectors(known: dict[str, set[str]], words: str) -> None:
    said = workers.difference("g", {url: frozenset(names) for url, names in known.items()})
    assert words in said
    assert bool(said) == bool(words)


class Asked:
    """A worker that gives one answer after the other; the last one stays."""

    def __init__(self, answers: dict[str, list[Any]], url: str, timeout: float) -> None:
        self._answers = answers[url[7]]

    def close(self) -> None:
        pass

    def call(self, method: str, path: str) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    def ask(groups: dict[str, list[bytes]], patience: float = 0.0, **answers: list[Any]) -> str | None:
        monkeypatch.setattr(workers, "Connect", partial(Asked, answers))
        monkeypatch.setattr(workers, "SPREAD_SECONDS", 0.0)
        monkeypatch.setattr(workers.admin, "group_members", lambda kafka, protocol: groups)
        monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
        return workers.divided(KafkaSettings(), {"a:8083"}, patience)

    return ask


A, B = member("http://a:8083/"), member("http://b:8083/")


def test_a_group_of_two_clusters_is_told(divided: Callable[..., str | None]) -> None:
    said = divided({"connect": [A, B]}, a=[["x"]], b=[[]])
    assert said is not None
    assert "(http://a:8083/ x; http://b:8083/ none)" in said


def test_what_passes_or_cannot_be_asked_is_not(divided: Callable[..., str | None]) -> None:
    assert divided({"connect": [A, B]}, a=[["x", "y"]], b=[["x"], ["x", "y"]]) is None, "known by now, perhaps"
    assert divided({"connect": [A, B]}, 30.0, a=[["x", "y"]], b=[["x"], ["x", "y"]]) == ""
    gone = UnavailableError("gone")
    assert divided({"connect": [A, B]}, a=[["x"]], b=[gone]) is None
    assert divided({"connect": [A, B]}, 30.0, a=[["x"]], b=[gone, gone, []]), "it is waited for"
    assert divided({"connect": [A], "others": [B]}, a=[["x"]], b=[[]]) == ""
    assert divided({"connect": [A, b""]}, a=[["x"]]) is None
    others = [member("http://c:8083/"), member("http://d:8083/")]
    assert divided({"others": others}, c=[["x"]], d=[[]]) == "", "nobody's business here"
