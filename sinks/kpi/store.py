r"""KPI values in Redis: what lies under which key, and the one script that writes them.

| key | type | holds |
|---|---|---|
| `kpi:<name>` | hash | `<window start or "all">\|<group>` -> value as JSON, see `Value.text` |
| `kpi:<name>:windows` | sorted set | starts of the windows kept, by time; older ones are trimmed with their values |
| `kpi:meta:<name>` | string | the declaration as JSON |
| `kpi:changes` | stream | every value written: `kpi`, `field`, `value` |
| `kpi:alerts` | stream | `fired` and `resolved`, see `sinks.kpi.alerts` |
| `kpi:alerting` | hash | alerts that are on: `<kpi>\|<group>\|<number>` -> the event that fired |
| `kpi:offset` | hash | `next` offset of `kpi.values` to read and the `topic`'s identity |

Values and offset are written by one script, which Redis runs whole or not at all. It never puts a lower revision over a
higher one, and writes nothing when the offset is not where the writer thinks it is: Redis has lost its memory, or
another sink is at work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from redis.asyncio import Redis

from schemas.kpis import Kpi

WINDOWS_KEPT = 120
CHANGES_KEPT = 10_000
ALERTS_KEPT = 1_000
ALL = "all"

OFFSET, CHANGES, ALERTS, ALERTING = "kpi:offset", "kpi:changes", "kpi:alerts", "kpi:alerting"

# ARGV: expected offset, next offset, topic identity, windows kept, changes kept, then per value: name, field, score of
# its window ("" for none), revision, JSON. Returns the number of values written, -1 when the offset is another.
# Revisions are compared as text, because Lua's numbers are doubles.
_WRITE = """
local function above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end
local stored = redis.call('HGET', KEYS[1], 'next') or ''
if stored ~= ARGV[1] then return -1 end
local written, touched = 0, {}
for i = 6, #ARGV, 5 do
  local hash, field = 'kpi:' .. ARGV[i], ARGV[i + 1]
  local old = redis.call('HGET', hash, field)
  local revision = old and string.match(old, '^{"revision":(%d+)') or ''
  if above(ARGV[i + 3], revision) then
    redis.call('HSET', hash, field, ARGV[i + 4])
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'kpi', ARGV[i], 'field', field, 'value', ARGV[i + 4])
    if ARGV[i + 2] ~= '' then
      redis.call('ZADD', hash .. ':windows', ARGV[i + 2], string.match(field, '^[^|]*'))
      touched[hash] = true
    end
    written = written + 1
  end
end
for hash, _ in pairs(touched) do
  local old, gone = redis.call('ZRANGE', hash .. ':windows', 0, -(tonumber(ARGV[4]) + 1)), {}
  for _, start in ipairs(old) do gone[start] = true end
  if #old > 0 then
    for _, field in ipairs(redis.call('HKEYS', hash)) do
      if gone[string.match(field, '^[^|]*')] then redis.call('HDEL', hash, field) end
    end
    redis.call('ZREM', hash .. ':windows', unpack(old))
  end
end
redis.call('HSET', KEYS[1], 'next', ARGV[2], 'topic', ARGV[3])
return written
"""


@dataclass(frozen=True)
class Value:
    """One published value, as a record of `kpi.values` holds it. Times are aware datetimes."""

    kpi: str
    window_start: datetime | None
    window_end: datetime | None
    group: str
    value: float | None
    unit: str
    final: bool
    revision: int
    cut: str
    updated_at: datetime

    @property
    def window(self) -> str:
        return ALL if self.window_start is None else self.window_start.isoformat()

    @property
    def field(self) -> str:
        return f"{self.window}|{self.group}"

    def text(self) -> bytes:
        """JSON; the revision comes first, where the script looks for it."""
        return orjson.dumps(
            {
                "revision": self.revision,
                "value": self.value,
                "unit": self.unit,
                "window_start": self.window_start,
                "window_end": self.window_end,
                "group": orjson.loads(self.group),
                "final": self.final,
                "cut": orjson.loads(self.cut),
                "updated_at": self.updated_at,
            }
        )

    @classmethod
    def parse(cls, kpi: str, field: str, text: bytes) -> Value:
        """Reads a field of `kpi:<name>`."""
        data = orjson.loads(text)
        start, end = (data[k] and datetime.fromisoformat(data[k]) for k in ("window_start", "window_end"))
        return cls(
            kpi=kpi,
            window_start=start,
            window_end=end,
            group=field.partition("|")[2],
            value=data["value"],
            unit=data["unit"],
            final=data["final"],
            revision=data["revision"],
            cut=orjson.dumps(data["cut"]).decode(),
            updated_at=datetime.fromisoformat(data["updated_at"]),
        )


@dataclass(frozen=True)
class Place:
    """Where reading stands. `next` None: nothing was read yet."""

    next: int | None = None
    topic: str = ""


class Store:
    """All of it under one Redis. Raises redis-py's errors."""

    def __init__(self, redis: Redis) -> None:
        # redis-py's types leave open whether answers are text or bytes: here they are bytes.
        self._redis: Any = redis
        self._script = redis.register_script(_WRITE)

    async def place(self) -> Place:
        stored = await self._redis.hgetall(OFFSET)
        return Place(int(stored[b"next"]), stored[b"topic"].decode()) if stored else Place()

    async def write(self, expected: Place, reached: Place, values: Sequence[Value]) -> bool:
        """Write values and the place they lead to; false, and nothing done, when `expected` is not what is stored."""
        parts: list[Any] = [
            "" if expected.next is None else expected.next, reached.next, reached.topic, WINDOWS_KEPT, CHANGES_KEPT
        ]  # fmt: skip
        for value in values:
            score = "" if value.window_start is None else value.window_start.timestamp()
            parts += [value.kpi, value.field, score, value.revision, value.text()]
        return int(await self._script(keys=[OFFSET, CHANGES], args=parts)) >= 0

    async def declare(self, kpis: Iterable[Kpi]) -> None:
        """Replace the declarations by these; the values of those that are gone go too."""
        wanted = {f"kpi:meta:{kpi.name}": orjson.dumps(kpi.about()) for kpi in kpis}
        present = {key.decode() async for key in self._redis.scan_iter("kpi:meta:*")}
        async with self._redis.pipeline(transaction=True) as pipe:
            for key in present - wanted.keys():
                name = key.removeprefix("kpi:meta:")
                pipe.delete(key, f"kpi:{name}", f"kpi:{name}:windows")
            for key, text in wanted.items():
                pipe.set(key, text)
            await pipe.execute()

    async def declared(self) -> dict[str, dict[str, Any]]:
        """Declarations by name."""
        keys = sorted([key async for key in self._redis.scan_iter("kpi:meta:*")])
        texts = await self._redis.mget(keys) if keys else []
        return {k.decode().removeprefix("kpi:meta:"): orjson.loads(t) for k, t in zip(keys, texts, strict=True) if t}

    async def values(self, kpi: str) -> list[Value]:
        """All values of a KPI that are kept, in no order."""
        stored = await self._redis.hgetall(f"kpi:{kpi}")
        return [Value.parse(kpi, field.decode(), text) for field, text in stored.items()]

    async def clear(self, names: Iterable[str]) -> None:
        """Forget values, alerts and the place, because they are of another `kpi.values` than there is now."""
        keys = [key for name in names for key in (f"kpi:{name}", f"kpi:{name}:windows")]
        await self._redis.delete(OFFSET, ALERTING, *keys)

    async def alerting(self) -> dict[str, dict[str, Any]]:
        return {k.decode(): orjson.loads(v) for k, v in (await self._redis.hgetall(ALERTING)).items()}

    async def record_alerts(self, fired: Mapping[str, Mapping[str, Any]], resolved: Mapping[str, Any]) -> None:
        """Both map what `alerting` has as keys to events."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for key, event in fired.items():
                pipe.hset(ALERTING, key, orjson.dumps(event))
            for key in resolved:
                pipe.hdel(ALERTING, key)
            for event in (*fired.values(), *resolved.values()):
                fields = {k: v if isinstance(v, str) else orjson.dumps(v) for k, v in event.items()}
                pipe.xadd(ALERTS, fields, maxlen=ALERTS_KEPT, approximate=True)
            await pipe.execute()
