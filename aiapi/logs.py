"""Logs: one JSON object a line on standard error, from structlog and the standard library alike.

Nothing that a caller sent beyond method, path, label and a host name that is refused is logged: no key, no prompt, no
answer, no query string. That holds for tracebacks too: they have no values of variables, and no messages but those that
can't quote a caller.
"""

from __future__ import annotations

import logging.config
from typing import Any

import structlog

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
#: Exceptions whose messages are made of code and of what the system says. Others may quote a prompt, as a provider's
#: do that stands in the chain of what failed after it.
SPEAKING = frozenset(
    {
        *("AssertionError", "AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "NotImplementedError"),
        *("RecursionError", "TypeError", "UnboundLocalError"),
        *("BrokenPipeError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError", "OSError"),
        *("ImproperlyConfigured", "OperationalError", "ProgrammingError", "TemplateDoesNotExist", "TimeoutError"),
    }
)


class _Tracebacks:
    """Makes a traceback a list of exceptions with their frames."""

    def __init__(self) -> None:
        self._transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)

    def __call__(self, exc_info: Any) -> list[dict[str, Any]]:
        """Leave out the messages that could quote a caller."""
        chain = self._transform(exc_info)
        for part in chain:
            _silence(part)
        return chain


def _silence(part: dict[str, Any]) -> None:
    part["exc_notes"] = []
    if part["exc_type"] not in SPEAKING:
        part["exc_value"] = ""
    for member in part.get("exceptions", []):
        for inner in member if isinstance(member, list) else [member]:
            _silence(inner)


_TRACEBACKS = structlog.processors.ExceptionRenderer(_Tracebacks())


class WithoutQuery(logging.Filter):
    """Cuts query strings off the addresses that gunicorn puts into its messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, cut."""
        if isinstance(record.args, tuple):
            record.args = tuple(each.partition("?")[0] if isinstance(each, str) else each for each in record.args)
        return True


def configuration(level: str) -> dict[str, Any]:
    """Return what logging.config.dictConfig takes, for Django and for gunicorn's own process alike."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"without_query": {"()": WithoutQuery}},
        "formatters": {
            "json": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _SHARED,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    _TRACEBACKS,
                    structlog.processors.JSONRenderer(),
                ],
            }
        },
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            # Its lines repeat ours, and its query strings could hold what a caller mistook for a parameter.
            "django.request": {"level": "CRITICAL"},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            "gunicorn.error": {"level": level, "handlers": [], "filters": ["without_query"], "propagate": True},
            "httpx2": {"level": "WARNING"},
            "httpcore2": {"level": "WARNING"},
            "openai": {"level": "WARNING"},
        },
    }


def configure(options: dict[str, Any]) -> None:
    """Set logging up, as Django's LOGGING_CONFIG; `options` holds `level`."""
    logging.config.dictConfig(configuration(options["level"]))
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
