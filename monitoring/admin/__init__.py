"""The admin pages of monitoring."""

from monitoring.admin.records import RequestRecordAdmin

__all__ = ["RequestRecordAdmin"]
