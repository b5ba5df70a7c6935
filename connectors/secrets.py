"""Secrets written into a connector's configuration, where Connect's API, its topics and logs would show them.

They belong to Connect's config providers: `${env:NAME}` and its like. Pure.
"""

from __future__ import annotations

import re

_PROVIDED = re.compile(r"\$\{[^{}:]+:[^{}]+\}")
_SECRET = re.compile(r"(password|passphrase|secret|token|access\.key|keystore\.key|credentials\.json)$", re.IGNORECASE)
_PARTS = (
    # Options of `sasl.jaas.config`, parameters of a URL.
    re.compile(r"(?:password|secret|token)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s;&\"']+)", re.IGNORECASE),
    re.compile(r"://[^/@\s:]*:([^/@\s]+)@"),
)
_MARK = "\0"


def holds_secret(setting: str, value: str) -> bool:
    """Whether a setting has a secret in it that no config provider gives: as a whole, or as a part of its value
    (`password="..."` of a JAAS configuration, `password=` or `user:...@` of a URL, `user:...` of basic
    authentication)."""
    marked = _PROVIDED.sub(_MARK, value)
    if _SECRET.search(setting):
        parts = [marked]
    else:
        parts = [found for pattern in _PARTS for found in pattern.findall(marked)]
        if setting.endswith("user.info"):
            parts.append(marked.partition(":")[2])
    return any(part.strip("\"'") and _MARK not in part for part in parts)
