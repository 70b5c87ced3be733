"""What a record's page in the admin tells beyond its fields: why it failed, where the time went, what was said."""

from __future__ import annotations

from collections.abc import Iterator

from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.exceptions import ApiError
from accounts.models import Account
from monitoring.content import content_of
from monitoring.models import RequestRecord

#: What the stages are called on the page.
STAGES = {
    "limits": "limits: reserving and settling",
    "cache": "cache",
    "flight": "waiting for an identical request",
    "upstream": "provider (of a stream: to its first byte)",
}


def _messages(kind: type[ApiError]) -> Iterator[tuple[str, str]]:
    yield kind.code, kind.message
    for child in kind.__subclasses__():
        yield from _messages(child)


#: What error codes mean that callers get.
TOLD_TO_CALLERS = dict(_messages(ApiError))
#: The same, and those that only a record has.
MESSAGES = {
    **TOLD_TO_CALLERS,
    "upstream_busy": "No deployment took the call: see why attempts failed.",
    "client_left": "The client closed the connection before the answer was complete.",
    "interrupted": "The process ended while the call ran; it was charged its bound.",
}


def reason_text(code: str) -> SafeString:
    """Say in a sentence what an error code means, and link to what callers can do about it."""
    if not code:
        return SafeString("—")
    message = MESSAGES.get(code)
    told = f"{code}: {message}" if message else code
    if code not in TOLD_TO_CALLERS:
        return format_html("{}", told)
    url = f"{reverse('playground')}#code-{code}"
    link = '{} <a class="text-primary-600 dark:text-primary-500 underline" href="{}">What to do about it</a>'
    return format_html(link, told, url)


def stage_table(record: RequestRecord) -> SafeString:
    """Make a table of the stages' times and of what is left of the whole."""
    named = [part.partition("=") for part in record.stages.split()]
    times = [(STAGES.get(name, name), float(spent)) for name, _, spent in named]
    if not times:
        return SafeString("not recorded")
    rest = max(0.0, record.latency_ms - sum(spent for _, spent in times))
    rows = format_html_join(
        "",
        '<tr><td class="pr-6">{}</td><td class="text-right whitespace-nowrap">{} ms</td></tr>',
        ((name, f"{spent:,.1f}") for name, spent in [*times, ("the rest, a stream's running time included", rest)]),
    )
    return format_html("<table>{}</table>", rows)


def content_text(record: RequestRecord, part: str) -> SafeString:
    """Show prompt or answer, or say why there is none."""
    content = content_of(record.pk)
    if content is None:
        return SafeString(_why_absent(record))
    text = getattr(content, part)
    if not text:
        return SafeString("nothing was answered")
    cut = " Longer than CONTENT_MAX_BYTES: this is its beginning." if content.is_cut else ""
    return format_html(
        '<pre class="max-h-80 overflow-auto text-xs" style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>'
        '<p class="text-subtle text-xs">Will not be shown after {} UTC.{}</p>',
        text,
        f"{content.expires_at:%Y-%m-%d %H:%M}",
        cut,
    )


def _why_absent(record: RequestRecord) -> str:
    logs = Account.objects.filter(pk=record.account_id, logs_content=True).exists()
    return "not logged, or expired" if logs else "not logged: content logging is off for this account"
