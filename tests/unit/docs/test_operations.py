import re
import tomllib
from pathlib import Path

import pytest

from cli.demo import PORTS as DEMO_PORTS
from cli.processes import PROCESSES
from cli.stack import PORTS
from headrace.config import Section, Settings, load_settings
from sinks.iceberg import compact, service, sweep
from stack import supervisor
from stack.servers import SERVERS
from streams import processor
from tests.unit.docs.pages import DOCS, ROOT, first_cells, section

PAGE = DOCS / "operations.md"
TEXT = PAGE.read_text(encoding="utf-8")
PACKAGES = ("headrace", "schemas", "connectors", "streams", "sinks", "serving", "governance", "stack", "cli", "demo")
METRIC = re.compile(r'\b(Counter|Gauge|Histogram|Info|GaugeMetricFamily)\(\s*"(headrace_\w+)"')
SUFFIX = {"Counter": "_total", "Info": "_info"}


def settings(model, prefix=""):
    """Name and default of every setting; a section's own fields instead of the section."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def test_settings_and_defaults_are_those_of_the_code():
    table = section(PAGE, "Configuration").partition("### Content folders")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|([^|]*)\|", table, re.MULTILINE)
    said = {name: default.strip() for name, default in rows}
    expected = {}
    for name, default in settings(Settings):
        value = default[0] if name == "content" else default
        text = "" if value in (None, "") else f"{value:.15g}" if isinstance(value, float) else str(value)
        expected[name] = f"`{text}`" if text and not isinstance(value, int | float) else text
    assert said == expected


def test_the_configuration_examples_load(tmp_path):
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)):
        (folder := tmp_path / str(number)).mkdir()
        (folder / "headrace.toml").write_text(block)
        assert tomllib.loads(block)
        load_settings(environ={}, folder=folder)
    found = load_settings(
        environ={
            "HEADRACE_LAKE__PROPERTIES": '{"s3.access-key-id": "me"}',
            "HEADRACE_MQTT__TOPICS": '{"site/+/reading": "Reading"}',
            "HEADRACE_CONTENT": "/a:/b",
        },
        folder=folder,
    )
    assert found.lake.properties.keys() == {"s3.endpoint", "s3.region", "s3.access-key-id"}
    assert found.mqtt.topics == {"site/+/reading": "Reading"}
    assert found.content == [Path("/a"), Path("/b")]


def test_metrics_are_those_of_the_code():
    found = {
        name + SUFFIX.get(kind, "")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for kind, name in METRIC.findall(path.read_text(encoding="utf-8"))
    }
    said = [name for name in first_cells(section(PAGE, "Health and metrics")) if name.startswith("headrace_")]
    assert sorted(said) == sorted(found)


def test_alerts_name_metrics_that_exist():
    said = set(first_cells(section(PAGE, "Health and metrics")))
    assert set(re.findall(r"headrace_\w+", section(PAGE, "Alerts"))) - {"headrace_shop"} <= said


def test_ports_are_those_of_the_code():
    said = {name: int(port) for name, port in re.findall(r"\| `([\w-]+)`[^|]*\| (\d+) ", section(PAGE, "Ports"))}
    servers = {name: port for server in SERVERS.values() for name, port in server.ports.items()}
    further = {name for name in servers if name.startswith("s3-")}
    assert said == PORTS | DEMO_PORTS | {name: port for name, port in servers.items() if name not in further}
    assert further <= set(re.findall(r"`([\w-]+)`", section(PAGE, "Ports")))


def test_processes_are_those_of_the_code():
    table = section(PAGE, "Processes").partition("### Ports")[0]
    assert set(first_cells(table)) >= PORTS.keys()
    assert PORTS.keys() <= PROCESSES.keys()


@pytest.mark.parametrize(
    "said",
    [
        f"every {supervisor.POLL_RUNNING:.0f} s and restarts",
        f"after {supervisor.BACKOFF[0]} s at first and {supervisor.BACKOFF[-1]:.0f} s",
        f"cannot start {supervisor.GIVE_UP_AFTER} times in a row",
        f"above {supervisor.LOG_BYTES >> 20} MB",
        f"up to {service.MAX_BUFFERED_BYTES >> 20} MB of records",
        f"looks again every {service.RETRY_SECONDS:.0f} s",
        f"newest {compact.KEEP_SNAPSHOTS} snapshots",
        f"every {compact.EXPIRE_EVERY} commits",
        f"at most {compact.TARGET_BYTES >> 20} MB a time",
        f"every {sweep.GRACE / 60:.0f} minutes while the table is written",
        f"{processor.RETRY_SECONDS / 60:.0f} minutes for one call",
    ],
)
def test_numbers_are_those_of_the_code(said):
    assert said in " ".join(TEXT.split())


def test_there_is_an_hour_before_a_file_is_removed():
    assert (sweep.MIN_AGE, compact.DEAD_SHARE) == (3600, 0.2)
