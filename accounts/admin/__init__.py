"""The admin of accounts, tiers, keys, the audit log, users and groups."""

from accounts.admin import accounts, entries, keys, people

__all__ = ["accounts", "entries", "keys", "people"]
