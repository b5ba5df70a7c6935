"""The worker process: a Faust app of all agents and KPI processors, inside this process's own life.

Faust's own worker (signals, web server, log set-up, plug-ins by module name) is not used: signals, health and metrics
are the process's, and agents are found as files in the content folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faust
from faust.tables import TableManager
from faust.types.tuples import TP

from headrace.config import KafkaSettings, Settings
from headrace.errors import ConfigError, HeadraceError, TerminalError
from headrace.kafka.admin import TopicSpec, add_partitions, ensure_topics, partitions
from headrace.kafka.client import client_options
from headrace.logs import get_logger
from headrace.process import Lifecycle
from schemas.captured import Captured
from schemas.codec import warm
from schemas.contracts import Contract, ContractSet
from schemas.register import register_contracts
from schemas.registry import Registry
from streams.agent import Agent
from streams.flow import AgentFlow, Services
from streams.kpi.declaration import sound_kpis
from streams.kpi.state import kpi_processors
from streams.lookup import Lookup, LookupReader
from streams.output import Output
from streams.positions import Positions
from streams.processor import Processor, Retry, Runner
from streams.quarantine import TOPIC as QUARANTINE
from streams.transport import BUFFER_CHUNKS

log = get_logger("worker")

AGENTS = Path("streams") / "agents"
# A change topic made before its connector: like the connectors make it. Not compacted: Kafka refuses records without a
# key there, and a truncation has none.
CHANGE_TOPIC = {"retention.ms": "-1"}
LAG_SECONDS = 2.0
STOP_SECONDS = 15.0
RESTORE_SECONDS = 600.0


def load_agents(folders: Iterable[Path]) -> list[Agent]:
    """The agents at the top level of `streams/agents/*.py` in content folders, loaded by path.

    Raises `ConfigError` naming the file that does not load, and for two agents of one name or one output.
    """
    found: dict[str, Agent] = {}
    paths = {path.resolve(): path for folder in folders for path in sorted((folder / AGENTS).glob("*.py"))}
    for path in paths.values():
        for agent in _agents_in(path):
            if agent.name in found:
                raise ConfigError(f"a second agent named {agent.name}", where=str(path))
            if agent.output in {other.output for other in found.values()}:
                # What is in the output says how far its one writer has come.
                raise ConfigError(f"a second agent that writes to {agent.output}", where=str(path))
            found[agent.name] = agent
    return list(found.values())


def _agents_in(path: Path) -> list[Agent]:
    if path.name == "__init__.py":
        return []
    # Not importable under this name, so that the file's folder can be called anything.
    spec = importlib.util.spec_from_file_location(f"headrace_agents.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError("is not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except HeadraceError as e:
        e.where = f"{path}: {e.where}" if e.where else str(path)
        raise
    except Exception as e:
        raise ConfigError(f"does not load: {type(e).__name__}: {e}", where=str(path)) from e
    return [value for value in vars(module).values() if isinstance(value, Agent)]


class NoTables(TableManager):
    """Faust's own waits a second at every start for tables, which nobody declares here."""

    async def sleep(self, n: Any) -> None:
        await super().sleep(0)


def faust_app(settings: Settings) -> Any:
    """A Faust app on the columnar transport, without web server, leader topic or store on disk."""
    worker = settings.worker
    folder = settings.state / "worker"
    folder.mkdir(parents=True, exist_ok=True)
    return faust.App(
        worker.application,
        broker=[f"headrace://{server.strip()}" for server in settings.kafka.bootstrap_servers.split(",")],
        broker_credentials=credentials(settings.kafka),
        broker_session_timeout=worker.session_timeout_seconds,
        broker_heartbeat_interval=min(3.0, worker.session_timeout_seconds / 3),
        broker_commit_interval=worker.commit_interval_seconds,
        # How long Faust waits for processors to read their state back after a rebalance.
        broker_request_timeout=RESTORE_SECONDS,
        store="memory://",
        TableManager=NoTables,
        datadir=str(folder),
        web_enabled=False,
        autodiscover=False,
        topic_disable_leader=True,
        stream_buffer_maxsize=BUFFER_CHUNKS,
        # The transport waits for chunks in hand itself.
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
    )


def credentials(kafka: KafkaSettings) -> Any:
    """TLS and SASL of the settings in Faust's words; None for plain text."""
    options = client_options(kafka)
    context = options.get("ssl_context")
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


class Worker:
    """Everything of one worker process, started and stopped in order."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._retry = Retry()
        self._registry = Registry(settings.registry.url, settings.state / "schemas")
        self._output = Output(settings.kafka)
        self._readers: dict[str, LookupReader] = {}
        self._processors: list[Processor] = []
        self._runners: list[Runner] = []
        self._app: Any = None

    async def run(self) -> None:
        """Returns after SIGTERM, drained. Raises the error that ends the process."""
        self._lifecycle.checks["worker"] = self._problem
        work = asyncio.ensure_future(self._work())
        stop = asyncio.ensure_future(self._lifecycle.stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif self._app is not None and self._app.started:
                await self._app.consumer.drain()
        finally:
            stop.cancel()
            work.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            await self._close()

    async def _work(self) -> None:
        captured = Captured.load(self._settings.content)
        contracts = captured.contracts
        agents = load_agents(self._settings.content)
        lookups = declared_lookups(agents)
        await asyncio.to_thread(warm)
        kpis = await self._start(lambda: sound_kpis(self._settings, self._registry))
        if not agents and not kpis:
            raise ConfigError(
                "no agents and no KPIs", where=", ".join(str(folder / AGENTS) for folder in self._settings.content)
            )
        await self._start(lambda: self._make_topics(contracts, agents, lookups, [kpi.source for kpi in kpis]))
        registered = await self._start(lambda: register_contracts(self._registry, contracts))
        await self._retry("start", self._output.start)
        schema_of = self._registry.schema
        self._readers = {
            name: LookupReader(lookup, self._settings.kafka, self._registry, self._retry)
            for name, lookup in lookups.items()
        }
        services = Services(
            kafka=self._settings.kafka,
            contracts=contracts,
            schema_of=schema_of,
            schema_ids={contracts.by_name[r.contract].topic: r.id for r in registered if r.id is not None},
            partitions=await self._start(lambda: partitions(self._settings.kafka)),
            output=self._output,
            lookups=self._readers,
            captured=captured,
        )
        self._processors = [
            *(AgentFlow(agent, services) for agent in agents),
            *kpi_processors(self._settings, kpis, self._registry, captured),
        ]
        for processor in self._processors:
            await self._retry(f"start {processor.flow}", processor.start)
        await self._run_app()

    async def _start(self, call: Any) -> Any:
        """A blocking call of the start-up, tried again while a server is away."""
        return await self._retry("start", lambda: asyncio.to_thread(call))

    def _make_topics(
        self, contracts: ContractSet, agents: list[Agent], lookups: dict[str, Lookup], more: list[str]
    ) -> None:
        kafka = self._settings.kafka
        sources = {a.source for a in agents} | {lookup.topic for lookup in lookups.values()} | set(more)
        wanted = {topic: _source_spec(contracts.by_topic.get(topic)) for topic in sources - {a.output for a in agents}}
        ensure_topics(kafka, {**wanted, QUARANTINE: TopicSpec()})
        # An agent's source may be another one's output: each round makes those whose source is there.
        left = list(agents)
        while left:
            there = partitions(kafka)
            ready = [agent for agent in left if agent.source in there]
            if not ready:
                names = ", ".join(agent.name for agent in left)
                raise ConfigError("agents read each other's output in a circle", where=f"agents {names}")
            ensure_topics(kafka, {agent.output: TopicSpec(there[agent.source]) for agent in ready})
            # A source may have got partitions since its output was made.
            add_partitions(kafka, {agent.output: there[agent.source] for agent in ready})
            left = [agent for agent in left if agent not in ready]

    async def _run_app(self) -> None:
        app = self._app = faust_app(self._settings)
        self._runners = [Runner(processor, self._retry) for processor in self._processors]
        for runner in self._runners:
            runner.attach(app)
        app.consumer.policy = Positions(self._runners)
        watched = [
            asyncio.ensure_future(task)
            for task in (
                *(reader.run() for reader in self._readers.values()),
                self._start_app(app),
                _crashed(app),
                self._measure(app),
            )
        ]
        try:
            # None of these ends but by failing.
            await asyncio.gather(*watched)
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _start_app(self, app: Any) -> None:
        await app.start()
        # Set once the first partitions (or none) are here, and read from where they should be.
        await app.tables.recovery.completed.wait()
        self._lifecycle.ready()
        log.info("ready", flows=[processor.flow for processor in self._processors])
        await asyncio.Event().wait()

    async def _measure(self, app: Any) -> None:
        while True:
            await asyncio.sleep(LAG_SECONDS)
            if app.started and not app.rebalancing:
                reading = {TP(r.processor.source, p) for r in self._runners for p in r.partitions}
                try:
                    ends = await app.consumer.highwaters(*reading) if reading else {}
                except asyncio.CancelledError:
                    # A consumer that stops cancels what asks it; why it stops is `_crashed`'s to tell.
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise
                    continue
                for runner in self._runners:
                    runner.measure(
                        {tp.partition: end for tp, end in ends.items() if tp.topic == runner.processor.source}
                    )

    def _problem(self) -> str | None:
        problems = [
            *(f"{where}: {what}" for where, what in self._retry.waiting.items()),
            *(f"{reader.flow}: {problem}" for reader in self._readers.values() if (problem := reader.problem())),
        ]
        problems += [runner.halted for runner in self._runners if runner.halted is not None]
        if problem := self._output.problem():
            problems.append(problem)
        return "; ".join(problems) or None

    async def _close(self) -> None:
        if self._app is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._app.stop()
            except TimeoutError:
                log.warning("Faust did not stop in time", seconds=STOP_SECONDS)
        for processor in self._processors:
            with contextlib.suppress(HeadraceError):
                await processor.stop()
        await self._output.stop()
        self._registry.close()


def declared_lookups(agents: Iterable[Agent]) -> dict[str, Lookup]:
    """Lookups of all agents by name. Raises `ConfigError` when two of one name differ."""
    found: dict[str, Lookup] = {}
    for agent in agents:
        for lookup in agent.lookups:
            if found.setdefault(lookup.name, lookup) != lookup:
                raise ConfigError(f"two different lookups named {lookup.name}", where=f"agent {agent.name}")
    return found


def _source_spec(contract: Contract | None) -> TopicSpec:
    return TopicSpec(config=CHANGE_TOPIC) if contract is not None and contract.is_cdc else TopicSpec()


async def _crashed(app: Any) -> None:
    # Faust marks a crash from whichever thread saw it; there is nothing to wait for that all of them wake.
    while not app.crashed:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    reason = app.crash_reason
    if isinstance(reason, HeadraceError):
        raise reason
    raise TerminalError(f"Faust stopped: {type(reason).__name__}", where="worker") from reason


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """`headrace run worker`."""
    await Worker(settings, lifecycle).run()
