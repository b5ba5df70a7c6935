"""The whole verification: which flows there should be, and one check for each.

What should exist is read from declarations (contracts, connector files) and from Kafka's own list of topics, never
from what the pipeline says it does: a topic that no table holds is an offence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from governance.verify.agents import check_agent
from governance.verify.avro import Schemas
from governance.verify.current import check_current
from governance.verify.history import check_history
from governance.verify.kafka import KafkaReader
from governance.verify.kpis import check_kpis, flow_of
from governance.verify.lake import Lake, Table
from governance.verify.landed import check_bronze, check_derived, check_upsert
from governance.verify.ledger import Ledger
from governance.verify.report import Check, Report
from headrace.config import Settings
from headrace.errors import TerminalError
from schemas.captured import change_prefixes
from schemas.contracts import Contract, ContractSet, load_contracts
from schemas.kpis import load_kpis
from schemas.names import prefix_of, table_name
from streams.app import load_agents

Progress = Callable[[str], None]


class Verification:
    """Runs the checks one after the other; each can be asked for alone by the topic or table it concerns."""

    def __init__(self, settings: Settings, *, patience: float = 60.0, progress: Progress = lambda _: None) -> None:
        self.settings = settings
        self.patience = patience
        self.progress = progress
        self.kafka = KafkaReader(settings.kafka)
        self.schemas = Schemas(settings.registry.url)
        self.lake = Lake(settings.lake)
        self.contracts: ContractSet = load_contracts(settings.content)
        self.prefixes = change_prefixes(settings.content)

    def run(self, only: Iterable[str] = (), *, kpis: bool = True) -> Report:
        """`only` keeps the checks whose flow contains one of the given texts.

        Raises `TerminalError` when that leaves nothing: what compared nothing has proved nothing.
        """
        wanted = tuple(only)

        def is_wanted(*names: str) -> bool:
            return not wanted or any(text in name for text in wanted for name in names)

        self.progress("reading the quarantine")
        # Committed offsets are read before the quarantine: what they have passed is in it by then.
        topics = self.kafka.topics()
        agents = [a for a in load_agents(self.settings.content) if a.source in topics]
        group = self.settings.worker.application
        committed = {a.name: self.kafka.committed(group, a.source, topics[a.source]) for a in agents}
        self.ledger = Ledger(self.kafka, self.schemas)
        checks: list[Check] = []

        def add(flow: str, what: str, make: Callable[[], Check]) -> None:
            if not is_wanted(flow, what):
                return
            self.progress(f"{flow}: {what}")
            failed = Check(flow, what)
            with failed.guarded():
                checks.append(make())
                return
            checks.append(failed)

        for topic in sorted(topics):
            if (prefix := prefix_of(topic, self.prefixes)) is not None:
                self._cdc(add, topic, topics[topic], self.settings.databases.get(prefix), prefix)
        for contract in self.contracts:
            if contract.is_cdc or contract.topic not in topics:
                continue
            if contract.derived_from or contract.is_builtin:
                self._derived(add, contract, topics[contract.topic])
            else:
                self._bronze(add, contract.topic, topics[contract.topic])
        for agent in agents:
            stage, partitions = f"agent:{agent.name}", topics[agent.source]
            add(
                f"{agent.source} -> {agent.output}",
                f"records through {stage}",
                partial(self._agent, committed[agent.name], stage, agent.source, partitions, agent.output),
            )
        if kpis and (declared := [kpi for kpi in load_kpis(self.settings.content).values() if is_wanted(flow_of(kpi))]):
            self.progress("recomputing KPIs")
            checks.extend(
                check_kpis(declared, self.kafka, self.schemas, self.lake, self.contracts, patience=self.patience)
            )
        if not checks:
            what = f"no flow is called {' or '.join(wanted)}" if wanted else "there is no flow to verify"
            folders = ", ".join(map(str, self.settings.content))
            raise TerminalError(what, where="verify", hint=f"flows are those of contracts and connectors in {folders}")
        return Report(checks)

    def _agent(self, committed: dict[int, int], stage: str, source: str, partitions: int, output: str) -> Check:
        if output not in self.kafka.topics():
            check = Check(f"{source} -> {output}", f"records through {stage}")
            if any(self.kafka.bounds(source, p)[1] for p in range(partitions)):
                check.offend(output, f"there is no such topic, though {source} has records")
            return check
        contract = self.contracts.by_topic.get(source)
        return check_agent(
            self.kafka,
            self.schemas,
            self.ledger,
            committed,
            stage,
            source,
            partitions,
            output,
            chained=contract is not None and bool(contract.derived_from),
        )

    def _bronze(self, add: Callable[..., None], topic: str, partitions: int) -> None:
        name = table_name("bronze", topic)

        def check() -> Check:
            table = self._newest(name)
            if table is None:
                return self._missing(topic, name, partitions)
            # Read on after the table: what its offsets have passed is in the quarantine by then.
            self.ledger.read_on()
            return check_bronze(self.kafka, self.schemas, self.lake, self.ledger, topic, partitions, table)

        add(topic, f"records in {name}", check)

    def _newest(self, name: str) -> Table | None:
        """The table as it is now: files of snapshots that are long past may be gone."""
        self.lake.refresh()
        return self.lake.table(name)

    def _cdc(self, add: Callable[..., None], topic: str, partitions: int, url: str | None, prefix: str) -> None:
        self._bronze(add, topic, partitions)
        contract = self.contracts.by_topic.get(topic)
        name = (contract and contract.storage and contract.storage.table) or table_name("silver", topic)
        schema, source = topic.split(".")[-2:]

        def check() -> Check:
            table = self._newest(name)
            if table is None:
                return self._missing(topic, name, partitions)
            if url is None:
                note = f"not compared: no database is named for {prefix} (setting databases.{prefix})"
                return Check(topic, f"{name} equals {schema}.{source}", note=note)
            return check_current(
                self.kafka, self.schemas, self.lake, topic, partitions, table, url, patience=self.patience
            )

        add(topic, f"{name} equals {schema}.{source}", check)
        if contract and contract.storage and (history := contract.storage.history):
            compare = partial(check_history, self.lake, topic, partitions, name, history, patience=self.patience)
            add(topic, f"{history} is the history of {name}", compare)

    def _derived(self, add: Callable[..., None], contract: Contract, partitions: int) -> None:
        if contract.storage is None:
            return
        topic, name, mode, key = contract.topic, contract.storage.table, contract.storage.mode, contract.key

        def check() -> Check:
            table = self._newest(name)
            if table is None:
                return self._missing(topic, name, partitions)
            if mode == "upsert":
                return check_upsert(self.kafka, self.schemas, self.lake, topic, partitions, table, key)
            return check_derived(self.kafka, self.schemas, self.lake, topic, partitions, table)

        add(topic, f"records in {name}", check)

    def _missing(self, topic: str, name: str, partitions: int) -> Check:
        check = Check(topic, f"records in {name}")
        for partition in range(partitions):
            low, high = self.kafka.bounds(topic, partition)
            if high > low:
                check.offend(f"{topic}/{partition}/{low}", f"there is no table {name}")
        return check
