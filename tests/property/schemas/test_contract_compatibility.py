"""A change that is called compatible lets Avro's own resolution read every old record."""

import io

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException
from fastavro.utils import generate_one
from hypothesis import event, given, settings
from hypothesis import strategies as st

from schemas.compatibility import breaking_changes

LEAVES = st.one_of(
    st.sampled_from(["int", "long", "float", "double", "string", "bytes", "boolean"]),
    st.builds(lambda s: {"type": "enum", "symbols": s}, st.lists(st.sampled_from("abc"), min_size=1, unique=True)),
    st.builds(lambda n: {"type": "fixed", "size": n}, st.integers(1, 2)),
)
TYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.filter(lambda t: not isinstance(t, list)).map(lambda t: ["null", t]),
        inner.map(lambda t: {"type": "array", "items": t}),
        inner.map(lambda t: {"type": "map", "values": t}),
        st.builds(
            lambda f: {"type": "record", "fields": f},
            st.lists(st.tuples(st.sampled_from("xy"), inner), min_size=1, max_size=2, unique_by=lambda f: f[0]),
        ),
    ),
    max_leaves=3,
)
FIELDS = st.lists(st.tuples(st.sampled_from("abcd"), TYPES), min_size=1, max_size=3, unique_by=lambda f: f[0])


def named(kind, path):
    """The type with a name of its own, by its place, where Avro wants one."""
    if isinstance(kind, list):
        return [named(branch, path) for branch in kind]
    if isinstance(kind, str):
        return kind
    out = dict(kind)
    if out["type"] in ("enum", "fixed", "record"):
        out["name"] = f"T{path}"
    if out["type"] == "record":
        out["fields"] = [{"name": n, "type": named(t, f"{path}_{n}")} for n, t in out["fields"]]
    for inner in ("items", "values"):
        if inner in out:
            out[inner] = named(out[inner], f"{path}_")
    return out


def record(fields, extra):
    made = [{"name": n, "type": named(t, n), **extra.get(n, {})} for n, t in fields]
    return {"type": "record", "name": "R", "fields": made}


@st.composite
def versions(draw):
    old = draw(FIELDS)
    new = []
    extra = {}
    for name, kind in old:
        match draw(st.sampled_from(["keep", "keep", "drop", "retype", "widen", "null", "alias"])):
            case "keep":
                new.append((name, kind))
            case "retype":
                new.append((name, draw(TYPES)))
            case "widen":
                new.append(
                    (name, {"int": "long", "float": "double"}.get(kind, kind) if isinstance(kind, str) else kind)
                )
            case "null":
                new.append((name, kind if isinstance(kind, list) else ["null", kind]))
            case "alias":
                new.append((f"{name}2", kind))
                extra[f"{name}2"] = {"aliases": [name]}
    if draw(st.booleans()):
        new.append(("more", ["null", "int"]))
        extra["more"] = draw(st.sampled_from([{}, {"default": None}]))
    defaults = {n: {"default": None} for n, kind in old if isinstance(kind, list) and draw(st.booleans())}
    return record(old, defaults), record(draw(st.permutations(new)), extra)


@settings(max_examples=200, deadline=None)
@given(versions())
def test_what_breaks_nothing_reads_everything(pair):
    old, new = pair
    out = io.BytesIO()
    writer = parse_schema(old)
    schemaless_writer(out, writer, generate_one(writer))
    out.seek(0)
    breaking = breaking_changes(old, new)
    try:
        schemaless_reader(out, writer, parse_schema(new))
        readable = True
    except (SchemaResolutionError, SchemaParseException, ValueError, KeyError):
        readable = False
    event(f"readable {readable}, breaking {bool(breaking)}")
    assert readable or breaking, (old, new)


@settings(deadline=None)
@given(FIELDS)
def test_no_change_breaks_nothing(fields):
    assert breaking_changes(record(fields, {}), record(fields, {})) == []
