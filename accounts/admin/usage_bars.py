"""What accounts have used of their limits and budgets, as bars: on list and page, in one step for all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.limits import get_limits, settled_in_database
from accounts.limits.bounds import Amount
from accounts.limits.contract import LimitName, Scope, Subject, SubjectUsage, Unavailable
from accounts.limits.local import wall_clock
from accounts.limits.months import month_of
from accounts.models import Account
from accounts.refusals import NANO_DOLLARS
from accounts.snapshots import account_subject, model_subject

MONTHLY = (LimitName.MONTHLY_TOKENS, LimitName.MONTHLY_COST)
TITLES = {
    LimitName.REQUESTS_PER_MINUTE: "Requests in the last minute",
    LimitName.TOKENS_PER_MINUTE: "Tokens in the last minute",
    LimitName.CONCURRENT_REQUESTS: "Requests open now",
    LimitName.MONTHLY_TOKENS: "Tokens this month",
    LimitName.MONTHLY_COST: "Cost this month",
}
UNKNOWN = "unknown while Redis is away"
RECORDED = "Redis is away: these are the months by the records; what is used of other limits is unknown."


@dataclass(frozen=True, slots=True)
class Bar:
    """How much of a limit is used; a limit of None is none, a use of None is not counted."""

    name: LimitName
    used: int | None
    limit: int | None

    @property
    def text(self) -> str:
        """Say it in words, exactly."""
        if self.limit is None:
            return f"{self._amount(self.used)} (no limit)" if self.used is not None else "no limit"
        used = self.used or 0
        share = f"{used / self.limit:.0%}" if self.limit else "100%"
        return f"{self._amount(used)} of {self._amount(self.limit)} ({share})"

    def html(self) -> SafeString:
        """Draw it, with the words beside it."""
        if self.limit is None:
            return format_html("{}", self.text)
        return format_html(
            '<progress max="{}" value="{}" aria-label="{}" class="block w-40"></progress><span>{}</span>',
            max(self.limit, 1),
            min(self.used or 0, max(self.limit, 1)),
            TITLES[self.name],
            self.text,
        )

    def _amount(self, value: int | None) -> str:
        if self.name is LimitName.MONTHLY_COST:
            return f"${(value or 0) / NANO_DOLLARS:,.2f}"
        return f"{value or 0:,}"


def attach_usage(accounts: Sequence[Account]) -> None:
    """Give each account its bars (`account.bars`), all in one step; while Redis is away those of the month alone."""
    scopes = [Scope(account.pk, (account_subject(account),)) for account in accounts]
    shown: Iterable[list[Bar]]
    try:
        shown = [bars(subjects[0]) for subjects in get_limits().usages(scopes)] if scopes else []
    except Unavailable:
        shown = [month for _, month in recorded_bars([scope.subjects[0] for scope in scopes])]
    for account, its_bars in zip(accounts, shown, strict=True):
        account.bars = its_bars  # type: ignore[attr-defined]  # for the columns


def bars(usage: SubjectUsage) -> list[Bar]:
    """List a subject's limits with what is used of them; open calls count with all that they may use."""
    limits = usage.subject.limits
    used = {
        LimitName.REQUESTS_PER_MINUTE: usage.requests,
        LimitName.TOKENS_PER_MINUTE: usage.tokens,
        LimitName.CONCURRENT_REQUESTS: usage.slots,
        LimitName.MONTHLY_TOKENS: usage.settled.tokens + usage.reserved.tokens,
        LimitName.MONTHLY_COST: usage.settled.cost + usage.reserved.cost,
    }
    names = MONTHLY if usage.subject.model else used
    return [Bar(name, used[name], getattr(limits, name)) for name in names]


def recorded_bars(subjects: Sequence[Subject]) -> list[tuple[Subject, list[Bar]]]:
    """List the months of subjects by the records in the database."""
    settled = settled_in_database(subjects, month_of(wall_clock())) if subjects else {}
    return [(subject, _months(subject, settled[subject])) for subject in subjects]


def _months(subject: Subject, used: Amount) -> list[Bar]:
    amounts = (used.tokens, used.cost)
    return [Bar(name, amount, getattr(subject.limits, name)) for name, amount in zip(MONTHLY, amounts, strict=True)]


def bar_of(account: Account, name: LimitName) -> SafeString:
    """Draw one limit of an account that attach_usage has seen."""
    its_bars: list[Bar] = account.bars  # type: ignore[attr-defined]
    return next((bar.html() for bar in its_bars if bar.name is name), format_html("{}", UNKNOWN))


def all_bars(account: Account) -> SafeString:
    """Draw every limit of one account, and its budgets for single models."""
    subjects = (account_subject(account), *(model_subject(budget) for budget in account.model_budgets.all()))
    try:
        (used,) = get_limits().usages([Scope(account.pk, subjects)])
    except Unavailable:
        return format_html("{}<p>{}</p>", _drawn(recorded_bars(subjects)), RECORDED)
    return _drawn([(usage.subject, bars(usage)) for usage in used])


def _drawn(shown: Iterable[tuple[Subject, list[Bar]]]) -> SafeString:
    rows = [(_title(subject, bar), bar.html()) for subject, its_bars in shown for bar in its_bars]
    return format_html_join("", '<p class="mb-2"><strong>{}</strong><br>{}</p>', rows)


def _title(subject: Subject, bar: Bar) -> str:
    return TITLES[bar.name] if subject.model is None else f"{TITLES[bar.name]}, {subject.model}"
