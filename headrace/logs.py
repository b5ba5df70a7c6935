"""Structured logs: one line an event on stderr, JSON off a terminal, pretty on it. Never payloads: they hold PII."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog

from headrace.errors import HeadraceError, unforeseen


def told_safely(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Type and place of an exception that is logged, whoever logs it, in place of its text."""
    if found := event.pop("exc_info", None):
        error = found if isinstance(found, BaseException) else found[1] if isinstance(found, tuple) else sys.exception()
        if error is not None:
            event["exception"] = str(error) if isinstance(error, HeadraceError) else unforeseen(error).what
    return event


def configure_logs(process: str, level: str | None = None) -> None:
    """Send structlog and the standard library's loggers to stderr in one format, with `process` on every line."""
    number = logging.getLevelNamesMapping()[(level or os.environ.get("HEADRACE_LOG_LEVEL", "INFO")).upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        told_safely,
    ]
    final: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, final],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger
