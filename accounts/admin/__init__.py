"""The admin of accounts, tiers, keys, the audit log, users and groups."""

from accounts.admin import accounts, keys, people

__all__ = ["accounts", "keys", "people"]
