"""Readings of refrigerated units: of known devices, each once, with whose unit it is and what it must keep."""

from streams.agent import Agent
from streams.lookup import Lookup
from streams.steps import deduplicate, enrich, known

DEVICES = Lookup(
    "devices",
    topic="shop.public.devices",
    key="id",
    columns=("customer_id", "site", "model", "min_temperature", "max_temperature"),
)
CUSTOMERS = Lookup("customers", topic="shop.public.customers", key="id", columns=("country", "segment"))

agent = Agent(
    name="readings",
    source="telemetry.readings",
    output="clean.readings",
    lookups=(DEVICES, CUSTOMERS),
    steps=(
        known("devices", key="device_id", rule="unknown device"),
        deduplicate(keys=["device_id"], order="seq"),
        enrich("devices", key="device_id", columns=DEVICES.columns),
        enrich("customers", key="customer_id", columns=["country"]),
    ),
)
