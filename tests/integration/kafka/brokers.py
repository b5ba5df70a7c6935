"""Kafka brokers of a test's own: KRaft nodes, each broker and controller, that a test may kill and configure."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stack import jars, probes
from stack.servers.kafka import LOGGING, class_path, random_id
from stack.spec import Place
from stack.supervisor import die_with_parent
from stack.testing import scattered_ports

SECONDS = 120.0
# Small, and quick to see that a node is gone.
SETTINGS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "2",
    "transaction.state.log.num.partitions": "2",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    "message.max.bytes": "16777216",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "log.cleaner.backoff.ms": "200",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "background.threads": "2",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


class Brokers:
    """Nodes 1 to `count`; `listeners` names those beside PLAINTEXT and their protocols, `scram` users and passwords.

    What is started ends at `close`, or with this process.
    """

    def __init__(
        self,
        count: int,
        config: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        scram: Mapping[str, str] | None = None,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="headrace-brokers-"))
        self.nodes = range(1, count + 1)
        self._protocols = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        self._ports = scattered_ports([f"{name}-{n}" for n in self.nodes for name in [*self._protocols, "CONTROLLER"]])
        self._place = Place(self.home, jars.cache_folder(), self._ports)
        self._config = dict(config or {})
        self._scram = dict(scram or {})
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def bootstrap_servers(self, listener: str = "PLAINTEXT") -> str:
        return ",".join(self._place.address(f"{listener}-{node}") for node in self.nodes)

    def prepare(self) -> None:
        """Write the nodes' files and format their storage."""
        jars.fetch_sets(["kafka"], self._place.cache)
        cluster = random_id()
        for node in self.nodes:
            folder = self._folder(node)
            (folder / "log4j2.properties").write_text(LOGGING)
            (folder / "server.properties").write_text(self._properties(node))
        first = self._folder(1)
        users = [
            word
            for name, password in self._scram.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(first / "server.properties"), *users]
        done = subprocess.run(self._java(1, *tool), capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        for node in self.nodes[1:]:
            # A Java machine less for each: nothing but the identity differs.
            shutil.copytree(first / "log", self._folder(node) / "log")
            identity = self._folder(node) / "log" / "meta.properties"
            text = re.sub(r"(?m)^node\.id=1$", f"node.id={node}", identity.read_text())
            identity.write_text(re.sub(r"(?m)^directory\.id=.*$", f"directory.id={random_id()}", text))

    def start(self, *nodes: int) -> None:
        """Start nodes, which do not answer yet. They end with the thread that calls this."""
        for node in nodes:
            with (self._folder(node) / "output.log").open("ab") as log:
                command = self._java(node, "kafka.Kafka", str(self._folder(node) / "server.properties"))
                self._running[node] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent(signal.SIGKILL),
                )

    def wait(self, *nodes: int) -> None:
        """Return when each of these nodes answers."""
        deadline = time.monotonic() + SECONDS
        for node in nodes:
            while probes.kafka_ok(self._ports[f"PLAINTEXT-{node}"]) is not None:
                ended = self._running[node].poll()
                if ended is not None or time.monotonic() > deadline:
                    raise AssertionError(f"node {node} (exit code {ended}): {self.log(node)[-3000:]}")
                time.sleep(0.1)

    def kill(self, node: int) -> None:
        self._running[node].kill()
        self._running.pop(node).wait(SECONDS)

    def stop(self, node: int) -> None:
        """End a node as an operator would: it hands its partitions over first."""
        self._running[node].terminate()
        self._running.pop(node).wait(SECONDS)

    def log(self, node: int) -> str:
        return (self._folder(node) / "output.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait(SECONDS)
        shutil.rmtree(self.home)

    def _folder(self, node: int) -> Path:
        return self._place.data(f"node-{node}")

    def _java(self, node: int, *words: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self._folder(node) / 'log4j2.properties'}"
        start = self._place.java("kafka", "256m", logging, "-XX:TieredStopAtLevel=1")
        return [*start, *class_path(self._place), *words]

    def _properties(self, node: int) -> str:
        address = self._place.address
        listeners = ",".join(f"{name}://{address(f'{name}-{node}')}" for name in [*self._protocols, "CONTROLLER"])
        replicas = str(len(self.nodes))
        in_sync = str(max(1, len(self.nodes) - 1))
        settings = {
            **SETTINGS,
            "node.id": str(node),
            "listeners": listeners,
            "advertised.listeners": listeners,
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in [*self._protocols.items(), ("CONTROLLER", "PLAINTEXT")]
            ),
            "controller.quorum.voters": ",".join(f"{n}@{address(f'CONTROLLER-{n}')}" for n in self.nodes),
            "log.dirs": str(self._folder(node) / "log"),
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            **{f"{topic}.replication.factor": replicas for topic in ("offsets.topic", "transaction.state.log")},
            "transaction.state.log.min.isr": in_sync,
            **self._config,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())


@contextmanager
def brokers(count: int, **options: Mapping[str, str]) -> Iterator[Brokers]:
    """`Brokers` that run, and end whatever happens."""
    made = Brokers(count, **options)
    try:
        made.prepare()
        made.start(*made.nodes)
        made.wait(*made.nodes)
        yield made
    finally:
        made.close()
