"""Content, topics and processes of one KPI test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import datetime

import pytest
import redis

from headrace.kafka.admin import TopicSpec, ensure_topics
from tests.integration.streams.support import Oracle

PARTITIONS = 3


@contextlib.contextmanager
def open_site(folder, settings):
    site = Site(folder, settings)
    try:
        yield site
    finally:
        site.close()


class Site:
    def __init__(self, folder, settings):
        self.folder, self.settings, self.tag = folder, settings, uuid.uuid4().hex[:8]
        self.oracle = Oracle(settings)
        self.orders, self.readings = f"t{self.tag}.public.orders", f"t{self.tag}.readings"
        ensure_topics(settings.kafka, {t: TopicSpec(PARTITIONS) for t in (self.orders, self.readings)})
        database = 1 + int(self.tag, 16) % 15
        self.redis_url = settings.redis.url.rpartition("/")[0] + f"/{database}"
        self.redis = redis.Redis.from_url(self.redis_url)
        self.redis.flushdb()
        self.processes = {}
        (folder / "streams" / "kpis").mkdir(parents=True)

    def kpi(self, name, **declared):
        lines = [f"{k} = {json.dumps(v)}" for k, v in ({"title": name, "unit": "u"} | declared).items()]
        (self.folder / "streams" / "kpis" / f"{name}_{self.tag}.toml").write_text("\n".join(lines))

    def start(self, name):
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", "run", name], cwd=self.folder, stderr=log, stdout=log,
            env={
                **os.environ,
                "HEADRACE_HOME": str(self.folder / "home"),
                "HEADRACE_CONTENT": str(self.folder),
                "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
                "HEADRACE_REGISTRY__URL": self.settings.registry.url,
                "HEADRACE_REDIS__URL": self.redis_url,
                "HEADRACE_WORKER__APPLICATION": f"g{self.tag}",
                "HEADRACE_WORKER__SESSION_TIMEOUT_SECONDS": "6",
            },
        )  # fmt: skip
        log.close()

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    def values(self, name):
        """{(window start or None, group as text): value}, as Redis has them."""
        stored = self.redis.hgetall(f"kpi:{name}_{self.tag}")
        found = {}
        for field, text in stored.items():
            window, _, group = field.decode().partition("|")
            value = json.loads(text)["value"]
            found[None if window == "all" else datetime.fromisoformat(window), group] = value
        return {k: v for k, v in found.items() if v}

    def await_values(self, name, expected, seconds=60):
        deadline = time.monotonic() + seconds
        while self.values(name) != expected:
            dead = [n for n, p in self.processes.items() if p.poll() is not None]
            if time.monotonic() > deadline or dead:
                logs = {n: (self.folder / f"{n}.log").read_text()[-3000:] for n in self.processes}
                pytest.fail(f"{dead=}\n{self.values(name)}\n!= {expected}\n" + "\n".join(map(str, logs.items())))
            time.sleep(0.2)

    def close(self):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        self.redis.flushdb()
