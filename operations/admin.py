"""The admin pages of operations, where Django looks for them."""

from operations.alerts.admin import AlertAdmin

__all__ = ["AlertAdmin"]
