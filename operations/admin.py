"""Registers the admin pages of operations: Django imports this module."""

from operations.alerts.admin import AlertAdmin

__all__ = ["AlertAdmin"]
