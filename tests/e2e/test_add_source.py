"""docs/add-a-source.md, followed literally in an empty folder: its files are written, its commands are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Headrace

DOCUMENT = REPOSITORY / "docs" / "add-a-source.md"
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> Iterator[tuple[str, str, str]]:
    yield from BLOCK.findall(DOCUMENT.read_text())


def script() -> str:
    """Everything up to the section on database tables as one shell script, stopping at the first failure."""
    lines = ["set -eu"]
    for language, title, text in blocks():
        if title.startswith("connectors/"):
            break
        if title:
            lines += [f"mkdir -p {os.path.dirname(title)}", f"cat > {title} <<'END_OF_FILE'\n{text}END_OF_FILE"]
        elif language == "console":
            lines += [line.removeprefix("$ ") for line in text.splitlines()]
    return "\n".join(lines)


@pytest.mark.timeout(600)
def test_the_page_does_what_it_says(folder: Path) -> None:
    work = folder / "newcomer"
    work.mkdir()
    headrace = Headrace(work / "factory" / ".headrace", [work / "factory"])
    environ = {k: v for k, v in headrace.environ.items() if not k.startswith("HEADRACE_")}
    try:
        done = subprocess.run(
            ["bash", "-c", script()], cwd=work, env=environ, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        rows = json.loads(done.stdout[done.stdout.index('[\n  {\n    "machine_id"') :].split("\n]")[0] + "\n]")
        assert [(row["machine_id"], row["severity"]) for row in rows] == [("m-001", "good"), ("m-002", "stop")]
        assert "pattern" in done.stdout, "the bad reading's answer names its rule"
        assert "everything agrees" in done.stderr
        assert not headrace.home.exists()
    finally:
        headrace("down", "--purge", "--yes", check=False)
    assert headrace.processes() == []


def test_the_connector_file_of_the_page_is_valid_json() -> None:
    (text,) = [text for _, title, text in blocks() if title.startswith("connectors/")]
    assert json.loads(text)["config"]["provide.transaction.metadata"] == "true"
