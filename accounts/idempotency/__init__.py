"""Idempotency-Key: a retry gets the first final answer, and is neither sent upstream nor billed again (WIRE.md)."""
