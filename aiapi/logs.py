"""Logs: one JSON object a line on standard output, from structlog and the standard library alike.

Nothing that a caller sent beyond method, path and label is logged: no key, no prompt, no answer, no query string.
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
#: Tracebacks without the values of variables: those may hold keys, prompts and answers.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def configure(options: dict[str, Any]) -> None:
    """Set logging up, as Django's LOGGING_CONFIG; `options` holds `level`."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
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
            "root": {"handlers": ["console"], "level": options["level"]},
            "loggers": {
                # Its lines repeat ours, and its query strings could hold what a caller mistook for a parameter.
                "django.request": {"level": "CRITICAL"},
                "django.security.DisallowedHost": {"level": "CRITICAL"},
                "httpx2": {"level": "WARNING"},
                "httpcore2": {"level": "WARNING"},
                "openai": {"level": "WARNING"},
            },
        }
    )
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
