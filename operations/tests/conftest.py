"""The fixtures of operations' tests."""

from inference.tests.fixtures import api, fake, handler, log_lines, records, roomy, upstream
from monitoring.tests.conftest import cast, redis_limits, site, store

__all__ = ["api", "fake", "handler", "log_lines", "records", "roomy", "upstream"]
__all__ += ["cast", "redis_limits", "site", "store"]
