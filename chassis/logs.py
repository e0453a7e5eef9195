"""
Log lines: JSON in production, readable in a terminal, and never a secret.

Every line written while a call is answered carries its request id, method and caller.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import structlog

from chassis.calls import current_call
from chassis.settings import ServiceSettings

REDACTED = "[redacted]"
# Fields that a contract marks sensitive; a service adds its own at its start.
_sensitive: set[str] = set()
_SECRET_NAME = re.compile(
    r"password|secret|token|authorization|cookie|api_?key|service_?key|dsn|_url$"
)
_SECRET_VALUE = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # a JWT
    r"|fsk_[a-z0-9-]+_[\w-]{20,}"  # a service key
    r"|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"  # user:password in a URL
)


def configure(settings: ServiceSettings, service: str) -> None:
    """Sends structlog and the standard library's logging to stderr in one format."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[Any] = [
        _with_call,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _name(service),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: Any = structlog.processors.JSONRenderer()
    if settings.log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), timestamp_key="time", pad_event_to=24
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def conceal(names: Iterable[str]) -> None:
    """From now on redacts values of these names, whatever they look like."""
    _sensitive.update(names)


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blanks values whose name or shape says that they are secret."""
    for name, value in event.items():
        # structlog's own entries, e.g. the standard library's record.
        if not name.startswith("_"):
            event[name] = _clean(name, value)
    return event


def _clean(name: str, value: object) -> object:
    if name in _sensitive or _SECRET_NAME.search(name.lower()):
        return REDACTED
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, Mapping):
        return {key: _clean(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean("", inner) for inner in value]
    return _SECRET_VALUE.sub(REDACTED, value if isinstance(value, str) else repr(value))


def _with_call(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    try:
        fields = current_call().fields()
    except LookupError:
        return event
    for name, value in fields.items():
        event.setdefault(name, value)
    return event


def _name(service: str) -> Any:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return add
