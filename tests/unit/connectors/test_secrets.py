from __future__ import annotations

import pytest

from connectors.secrets import holds_secret

JAAS = 'org.apache.kafka.common.security.scram.ScramLoginModule required username="u" password=%s;'
OAUTH = 'org.example.OAuthModule required clientId="c" clientSecret=%s tokenEndpoint="https://x/token";'
HISTORY = "schema.history.internal.producer."


@pytest.mark.parametrize(
    ("setting", "form"),
    [
        ("database.password", "%s"),
        ("ssl.keystore.key", "%s"),
        ("some.access.key", "%s"),
        (HISTORY + "sasl.jaas.config", JAAS),
        (HISTORY + "sasl.jaas.config", OAUTH),
        ("value.converter.basic.auth.user.info", "u:%s"),
        ("value.converter.schema.registry.url", "https://u:%s@registry:8081/"),
        ("connection.url", "jdbc:postgresql://db/x?user=u&password=%s&ssl=true"),
    ],
)
def test_a_secret_is_found_and_a_reference_to_one_is_not(setting: str, form: str) -> None:
    for plain in ("hunter2", '"hunter2"', "x${", "${}"):
        assert holds_secret(setting, form % plain), plain
    for provided in ("${env:SECRET}", '"${env:SECRET}"', "${file:/run/secrets/db:password}"):
        assert not holds_secret(setting, form % provided), provided
    assert not holds_secret(setting, "")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("database.user", "u"),
        ("table.include.list", "public.passwords"),
        ("column.mask.hash.v2.SHA-256.with.salt.x", "public.users.password"),
        ("value.converter.schema.registry.url", "https://registry:8081/?a=1"),
        ("value.converter.basic.auth.user.info", "${env:USER}:${env:PASSWORD}"),
        ("connection.url", "jdbc:postgresql://db:5432/x"),
    ],
)
def test_what_is_no_secret_passes(setting: str, value: str) -> None:
    assert not holds_secret(setting, value)
