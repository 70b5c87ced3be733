"""The fixtures of inference's tests."""

from inference.tests.fixtures import api, cast, clock, fake, handler, log_lines, records, roomy, upstream

__all__ = ["api", "cast", "clock", "fake", "handler", "log_lines", "records", "roomy", "upstream"]
