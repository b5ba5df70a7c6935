import re

import pyarrow as pa
import pyarrow.compute as pc

from schemas import envelope
from streams import processor, steps
from streams.agent import Agent, StepContext
from streams.app import load_agents
from tests.unit.docs.pages import DOCS, first_cells, section

PAGE = DOCS / "agents.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python title=(\S+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


def test_the_agent_loads_and_its_test_passes(tmp_path):
    path = tmp_path / "streams" / "agents" / "pressures.py"
    path.parent.mkdir(parents=True)
    path.write_text(BLOCKS["streams/agents/pressures.py"])
    (agent,) = load_agents([tmp_path])
    assert agent.name == "pressures"
    names = {}
    exec(path.read_text() + "\n" + BLOCKS["test_pressures.py"], names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_function_for_each_value_works():
    (block,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    names = {"pa": pa, "pc": pc, "StepContext": StepContext, "slug": str.lower}
    exec(block, names)
    out = names["shorten"](pa.RecordBatch.from_pydict({"name": ["A", "B"]}), None)
    assert out.column("slug").to_pylist() == ["a", "b"]


def test_names_are_those_of_the_code():
    assert first_cells(section(PAGE, "The agent")) == list(Agent.__dataclass_fields__)
    ready = {name.partition("(")[0] for name in first_cells(section(PAGE, "Ready-made steps"))}
    assert ready == set(steps.__all__)
    shown = first_cells(section(PAGE, "What a step gets"))
    functions = {name.partition("(")[0] for name in shown if not name.startswith("ctx.")}
    assert all(hasattr(envelope, name) for name in functions)
    methods = {re.match(r"ctx\.(\w+)", name)[1] for name in shown if name.startswith("ctx.")}
    public = {n for n in vars(StepContext) if not n.startswith("_")} - {"rows", "depart"}
    assert public <= methods <= public | {"agent", "topic", "partition"}


def test_numbers_are_those_of_the_code():
    assert f"for {processor.RETRY_SECONDS / 60:.0f} minutes" in TEXT
    assert f"up to {processor.LONGEST_PAUSE:.0f} s" in TEXT
