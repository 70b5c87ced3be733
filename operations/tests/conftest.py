"""The fixtures of operations' tests."""

from inference.tests.fixtures import api, fake, handler, log_lines, records, roomy, upstream
from monitoring.tests.conftest import cast, redis_limits, store

__all__ = ["api", "cast", "fake", "handler", "log_lines", "records", "redis_limits", "roomy", "store", "upstream"]
