"""Tables whose REPLICA IDENTITY does not say which row is gone, against real Postgres and Connect."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest

from connectors.connect import load_connector
from connectors.databases import open_source
from connectors.identity import check_identity, nameless
from connectors.supervise import trouble_of
from connectors.watch import Watch
from headrace.config import Settings
from headrace.errors import ContractError
from tests.integration.connectors.conftest import Source

IDENTITIES = (
    "CREATE TABLE by_key (id int PRIMARY KEY, code text NOT NULL UNIQUE)",
    "CREATE TABLE by_index (LIKE by_key INCLUDING ALL)",
    "ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key",
    "CREATE TABLE by_own_index (LIKE by_key INCLUDING ALL)",
    "ALTER TABLE by_own_index REPLICA IDENTITY USING INDEX by_own_index_pkey",
    "CREATE TABLE by_more (LIKE by_key INCLUDING ALL)",
    "CREATE UNIQUE INDEX more ON by_more (code, id)",
    "ALTER TABLE by_more REPLICA IDENTITY USING INDEX more",
    "CREATE TABLE by_included (LIKE by_key INCLUDING ALL)",
    "CREATE UNIQUE INDEX included ON by_included (code) INCLUDE (id)",
    "ALTER TABLE by_included REPLICA IDENTITY USING INDEX included",
    "CREATE TABLE without_key (code text NOT NULL UNIQUE)",
    "ALTER TABLE without_key REPLICA IDENTITY USING INDEX without_key_code_key",
    'CREATE TABLE "By Index" (LIKE by_key INCLUDING ALL)',
    'ALTER TABLE "By Index" REPLICA IDENTITY USING INDEX "By Index_code_key"',
)


def test_tables_whose_deletes_name_no_row_are_told_with_what_mends_them(
    settings: Settings, connect_url: str, source: Source
) -> None:
    mine = settings.model_copy(update={"databases": {source.name: source.url}})
    with psycopg.connect(source.url, autocommit=True) as db, closing(Watch(mine)) as watch:
        for statement in IDENTITIES:
            db.execute(statement)
        config = load_connector(source.write(**{"table.include.list": "public[.].*"})).config
        found = open_source(mine, config)
        assert found is not None
        wrong = nameless(found, config)
        assert wrong.keys() == {"public.by_index", "public.by_included", "public.By Index"}
        keyed = config | {"message.key.columns": "public[.]by_index:code;public[.]by_included:code"}
        assert nameless(found, keyed).keys() == {"public.By Index"}
        with pytest.raises(ContractError, match="deletes do not say") as refused:
            check_identity(mine, config)
        assert refused.value.hint in wrong.values()
        check_identity(settings, config)

        assert watch.connect.apply(load_connector(source.write(**{"table.include.list": "public.by_index"}))).running
        capture = watch.look({source.name})[0]
        assert (capture.state, capture.fault) == ("RUNNING", "")
        assert wrong["public.by_index"] in trouble_of(capture, False)
        for statement in wrong.values():
            db.execute(statement)
        assert nameless(found, config) == {}
        assert watch.look({source.name})[0].flaw == ""
