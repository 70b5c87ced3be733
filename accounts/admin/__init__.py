"""The admin of accounts, tiers, keys, the audit log and the people who use the admin; one module for each."""

from accounts.admin import accounts, keys, people

__all__ = ["accounts", "audit_log", "keys", "people", "tiers"]
