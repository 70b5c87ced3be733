"""Logging configuration: JSON lines on standard error, or plain ones on a terminal, from structlog and logging alike.

Of a request, only method, path, label and a rejected host name are logged; never a key, a prompt, an answer or a query
string. Tracebacks have no values of variables, and exception messages only of types that can't quote a request.
"""

from __future__ import annotations

import logging.config
import sys
from typing import Any

import structlog

from core.json import to_json
from core.telemetry.trace import current_trace

#: Exceptions whose messages come from code or from the operating system. Others may quote a prompt, for example a
#: provider's error in the chain of a later exception.
SPEAKING = frozenset(
    {
        *("AssertionError", "AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "NotImplementedError"),
        *("RecursionError", "TypeError", "UnboundLocalError"),
        *("BrokenPipeError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError", "OSError"),
        *("ImproperlyConfigured", "OperationalError", "ProgrammingError", "TemplateDoesNotExist", "TimeoutError"),
    }
)


class _Tracebacks:
    """Formats a traceback as a list of exceptions with their frames, or for a terminal as text."""

    def __init__(self) -> None:
        self._transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)

    def __call__(self, exc_info: Any) -> list[dict[str, Any]]:
        """Return the exceptions, without messages that could quote a request."""
        chain = self._transform(exc_info)
        for part in chain:
            _silence(part)
        return chain

    def as_text(self, exc_info: Any) -> str:
        """Return the exceptions as Python prints them, the outermost last."""
        lines = []
        for part in reversed(self(exc_info)):
            lines += [
                f'  File "{each["filename"]}", line {each["lineno"]}, in {each["name"]}' for each in part["frames"]
            ]
            lines.append(f"{part['exc_type']}: {part['exc_value']}".removesuffix(": "))
        return "\n".join(lines)


def _silence(part: dict[str, Any]) -> None:
    part["exc_notes"] = []
    if part["exc_type"] not in SPEAKING:
        part["exc_value"] = ""
    for member in part.get("exceptions", []):
        for inner in member if isinstance(member, list) else [member]:
            _silence(inner)


def _add_request_id(logger: Any, method: str, event: Any) -> Any:
    """Add the label of the current request to a line (a structlog processor)."""
    trace = current_trace.get()
    if trace is not None:
        event["request_id"] = trace.label
    return event


def _written(event: Any, default: Any) -> str:
    return to_json(event, default=default).decode()


_SHARED: list[Any] = [
    _add_request_id,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
]


def _rendered() -> list[Any]:
    """Return the processors that make a line: for a person at a terminal, or JSON."""
    tracebacks = _Tracebacks()
    if sys.stderr.isatty():
        return [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.processors.ExceptionRenderer(tracebacks.as_text),
            structlog.dev.ConsoleRenderer(pad_event_to=0),
        ]
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(_written),
    ]


def write_line(line: str) -> None:
    """Write a finished line."""
    sys.stderr.write(f"{line}\n")


class _Lines:
    """Writes finished lines, past the standard library's loggers: those take as long as the rest of a line."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """Write a line."""
        write_line(line)

    debug = info = warning = error = critical = exception = msg


class WithoutQuery(logging.Filter):
    """Removes query strings from the URLs in gunicorn's messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Remove the query strings and pass the record on."""
        if isinstance(record.args, tuple):
            record.args = tuple(each.partition("?")[0] if isinstance(each, str) else each for each in record.args)
        return True


def configuration(level: str) -> dict[str, Any]:
    """Return the configuration for logging.config.dictConfig, used by Django and by gunicorn."""
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
                    *_rendered(),
                ],
            }
        },
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            # Django's lines repeat RequestMiddleware's, and include query strings, which could contain a key.
            "django.request": {"level": "CRITICAL"},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            "gunicorn.error": {"level": level, "handlers": [], "filters": ["without_query"], "propagate": True},
            "httpx2": {"level": "WARNING"},
            "httpcore2": {"level": "WARNING"},
            "openai": {"level": "WARNING"},
        },
    }


def configure(options: dict[str, Any]) -> None:
    """Set up logging (Django's LOGGING_CONFIG). `options` has the log level as `level`."""
    logging.config.dictConfig(configuration(options["level"]))
    structlog.configure(
        processors=[*_SHARED, *_rendered()],
        logger_factory=_Lines,
        wrapper_class=structlog.make_filtering_bound_logger(options["level"]),
        cache_logger_on_first_use=True,
    )
