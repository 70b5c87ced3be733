"""Amounts of money as integer nano-dollars: conversion from and to US dollars."""

from __future__ import annotations

from decimal import Decimal

NANO_DOLLARS = 1_000_000_000


def nano(amount: Decimal) -> int:
    """Convert US dollars to integer nano-dollars."""
    return int((Decimal(amount) * NANO_DOLLARS).to_integral_value())


def dollars(nano: int) -> str:
    """Format nano-dollars as US dollars with nine decimals, exactly."""
    return f"{nano // NANO_DOLLARS}.{nano % NANO_DOLLARS:09d}"


def nano_dollars(dollars: Decimal | None) -> int | None:
    """Convert US dollars to integer nano-dollars; None stays None."""
    return None if dollars is None else nano(dollars)
