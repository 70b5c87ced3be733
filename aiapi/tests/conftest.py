"""The fixtures of aiapi's tests."""

from inference.tests.fixtures import api, cast, fake, handler, log_lines, records, roomy, upstream

__all__ = ["api", "cast", "fake", "handler", "log_lines", "records", "roomy", "upstream"]
