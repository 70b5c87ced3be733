"""Content logging: off by default, of chosen accounts only, for those alone who may read it, and never in the way."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings

from accounts.key_cache import build_authenticated_key, key_cache
from accounts.limits import get_limits
from accounts.models import Account, AuditEntry
from accounts.tests.factories import Cast, logged_in, make_admin, make_staff
from core.telemetry.trace import begin_trace
from core.times import new_id
from inference.call import Call
from inference.fake_provider import FakeUpstream
from inference.protocols.chat import chat_protocol
from inference.tests.fixtures import PROMPT, Api, LogLines, Records
from monitoring import payload_log
from monitoring.models import RequestContent
from monitoring.payload_log import MOST_WAITING, ContentKeeper, Cut, content_of, keeper

LOG = "/admin/monitoring/requestrecord/"
ANSWER = f"You said: {PROMPT}"


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write what waits when the test says so: a thread would not see the test's transaction."""
    monkeypatch.setattr(keeper._thread, "start", lambda: False)
    keeper._waiting.clear()


@pytest.fixture
def logged(api: Api) -> Api:
    """Return a caller whose account's content is logged."""
    Account.objects.filter(pk=api.key.key.account_id).update(logs_content=True)
    key_cache.forget()
    return api


def kept() -> list[RequestContent]:
    """Write what waits, and list all content, the oldest first."""
    keeper.flush()
    return list(RequestContent.objects.order_by("record_id"))


def a_call(cast: Cast, payload: dict[str, Any]) -> Call:
    """Make a call of the owner that asks for so much."""
    identity, trace = build_authenticated_key(cast.owner.key, timezone.now()), begin_trace(None)
    call = Call(identity=identity, trace=trace, admission=get_limits().peek(identity.limits), endpoint="chat")
    call.protocol, call.payload = chat_protocol, payload
    return call


def page(records: Records, *permissions: str) -> str:
    """Return the page of the newest record as somebody with these permissions sees it; without any, a superuser."""
    site = logged_in(make_staff(*permissions) if permissions else make_admin())
    return site.get(f"{LOG}{records()[-1].pk}/change/").content.decode()


class TestWhatIsKept:
    def test_it_keeps_nothing_unless_it_is_switched_on(self, api: Api, upstream: FakeUpstream) -> None:
        api.chat()
        assert kept() == []

    def test_it_keeps_prompt_and_answer_under_the_record_s_id(
        self, logged: Api, upstream: FakeUpstream, records: Records
    ) -> None:
        logged.chat()
        (row,), (record,) = kept(), records()
        assert (row.record_id, row.account_id) == (record.pk, logged.key.key.account_id)
        prompt, answer = json.loads(row.prompt), json.loads(row.answer)
        assert prompt["messages"][-1] == {"role": "user", "content": PROMPT}
        assert answer["choices"][0]["message"]["content"] == ANSWER
        assert not row.is_cut

    def test_it_keeps_nothing_of_others(self, logged: Api, cast: Cast, upstream: FakeUpstream) -> None:
        logged.of(cast.stranger).chat()
        assert kept() == []

    def test_it_keeps_an_answer_out_of_the_cache(self, logged: Api, upstream: FakeUpstream) -> None:
        logged.chat()
        logged.chat()
        assert [json.loads(row.answer)["choices"][0]["message"]["content"] for row in kept()] == [ANSWER, ANSWER]

    def test_it_keeps_the_prompt_of_a_call_that_failed(self, logged: Api, upstream: FakeUpstream) -> None:
        upstream.set(api_key="another")
        assert logged.chat().status_code == 502
        (row,) = kept()
        assert PROMPT in row.prompt
        assert row.answer == ""

    def test_it_puts_a_cached_stream_together(self, cast: Cast) -> None:
        chunks = "".join(
            f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n" for word in ("a ", "b")
        )
        call = a_call(cast, {"messages": []})
        call.body = {"stream": f"{chunks}data: [DONE]\n\n"}
        assert (call.whole_body() or {})["choices"][0]["message"]["content"] == "a b"

    def test_it_cuts_what_is_too_long(self, logged: Api, upstream: FakeUpstream, settings: Settings) -> None:
        settings.CONTENT_MAX_BYTES = 1024
        logged.post("/summarize", {"text": "word " * 900})
        (row,) = kept()
        assert row.is_cut
        assert 900 < len(row.prompt) < 1600
        assert row.prompt.count("…") >= 1

    def test_it_stores_texts_that_no_database_likes(self, db: None) -> None:
        odd = "nul \x00, half a pair \ud83d, \U0001f600"
        keeper.keep(record_id=new_id(), account_id=1, prompt=odd, answer=lambda: odd)
        (row,) = kept()
        assert json.loads(row.prompt) == json.loads(row.answer) == "nul \x00, half a pair ?, \U0001f600"


class TestNeverInTheWay:
    def test_it_answers_when_content_can_t_be_written(
        self, logged: Api, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
    ) -> None:
        def refuse(entries: Any) -> None:
            raise DatabaseError("disk full of secrets")

        monkeypatch.setattr(payload_log, "write_content", refuse)
        assert logged.chat().status_code == 200
        assert kept() == []
        (line,) = [line for line in log_lines() if line["event"] == "content_dropped"]
        assert (line["entries"], line["cause"]) == (1, "DatabaseError")

    def test_it_drops_what_is_too_much(self, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch) -> None:
        own = ContentKeeper()
        monkeypatch.setattr(own._thread, "start", lambda: False)
        for _ in range(MOST_WAITING + 2):
            own.keep(record_id=new_id(), account_id=1, prompt={"a": PROMPT}, answer=lambda: None)
        assert len(own._waiting) == MOST_WAITING
        dropped = [line for line in log_lines() if line["event"] == "content_dropped"]
        assert [line["dropped_so_far"] for line in dropped] == [1, 2]

    def test_it_logs_nothing_of_it(self, logged: Api, upstream: FakeUpstream, log_lines: LogLines) -> None:
        logged.chat()
        kept()
        assert "zanzibar" not in json.dumps(log_lines())

    def test_it_does_not_walk_through_a_huge_prompt(self) -> None:
        walked: list[int] = []

        def parts() -> Any:
            for number in range(1_000_000):
                walked.append(number)
                yield number, "x" * 100

        class Huge(dict[str, Any]):
            def items(self) -> Any:
                return parts()

        cut = Cut(1024)
        assert len(cut.of(Huge())) < 20
        assert cut.is_over
        assert len(walked) < 20

    @pytest.mark.parametrize(
        ("text", "shown"),
        [("字" * 2000, "字" * 341), ("字" * 341, "字" * 341), ("word", "word"), ("a" * 1024, "a" * 1024)],
    )
    def test_it_cuts_by_bytes(self, text: str, shown: str) -> None:
        cut = Cut(1024)
        assert cut.of(text) == shown + ("" if text == shown else "…")
        assert cut.is_over == (text != shown)

    def test_it_stops_where_lists_have_no_end(self) -> None:
        deep: list[Any] = []
        deep.append(deep)
        cut = Cut(1024)
        cut.of(deep)
        assert cut.is_over


@pytest.mark.parametrize("lapse", ["expiry", "setting"])
def test_it_shows_nothing_that_has_expired_and_prunes_it(
    logged: Api, upstream: FakeUpstream, records: Records, settings: Settings, lapse: str
) -> None:
    logged.chat()
    (row,) = kept()
    assert PROMPT in page(records)
    past = timezone.now() - timedelta(hours=3)
    RequestContent.objects.update(created_at=past)
    if lapse == "expiry":
        RequestContent.objects.update(expires_at=past)
    else:
        settings.CONTENT_RETENTION_HOURS = 2
    assert content_of(row.pk) is None
    output = StringIO()
    call_command("prune_logs", stdout=output)
    assert "Pruned the content of 1 requests" in output.getvalue()
    assert not RequestContent.objects.exists()


def test_it_prunes_nothing_that_is_to_be_kept(logged: Api, upstream: FakeUpstream) -> None:
    logged.chat()
    kept()
    call_command("prune_logs", stdout=StringIO())
    assert RequestContent.objects.count() == 1


class TestThePage:
    def test_it_shows_content_to_those_with_the_permission_only(
        self, logged: Api, upstream: FakeUpstream, records: Records
    ) -> None:
        logged.chat("<script>alert(1)</script>")
        kept()
        seen = page(records, "monitoring.view_requestrecord", "monitoring.view_requestcontent")
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in seen
        assert "<script>alert(1)" not in seen

    def test_it_shows_none_without_it(self, logged: Api, upstream: FakeUpstream, records: Records) -> None:
        logged.chat()
        kept()
        seen = page(records, "monitoring.view_requestrecord")
        assert "zanzibar" not in seen
        assert ">Content<" not in seen

    def test_it_says_why_there_is_none(self, api: Api, upstream: FakeUpstream, records: Records) -> None:
        api.chat()
        assert "content logging is off for this account" in page(records)

    def test_it_shows_stages_and_why_it_failed(self, api: Api, upstream: FakeUpstream, records: Records) -> None:
        upstream.set(api_key="another")
        api.chat()
        (record,) = records()
        assert {part.partition("=")[0] for part in record.stages.split()} >= {"limits", "cache", "upstream", "attempt1"}
        assert record.failures == "openai/gpt-3.5-turbo: http 401 invalid_api_key"
        seen = page(records)
        assert "<span>Limits</span>" in seen
        assert "openai/gpt-3.5-turbo: http 401" in seen
        assert "upstream_failed: " in seen


def test_it_is_audited_when_it_is_switched_on(
    cast: Cast, api: Api, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    from accounts.services import account_save

    account = cast.owner.key.account
    account.logs_content = True
    account_save(account=account, actor="admin:root")
    entry = AuditEntry.objects.latest("pk")
    assert (entry.before, entry.after) == ({"logs_content": False}, {"logs_content": True})


class Weighed(dict[str, Any]):
    """A payload that can be referred to weakly."""


def test_it_lets_go_of_a_request_that_waits_to_be_written(cast: Cast) -> None:
    """Bodies may be of megabytes each, and of those that wait while the database is slow there may be hundreds."""
    payload = Weighed(messages=[{"role": "user", "content": PROMPT}])
    Account.objects.filter(pk=cast.owner.key.account_id).update(logs_content=True)
    cast.owner.key.account.refresh_from_db()
    body = Weighed(choices=[{"message": {"content": ANSWER}}])
    made = a_call(cast, payload)
    made.body = body
    made.emit(status=200)
    left = [weakref.ref(payload), weakref.ref(body)]
    del payload, body, made
    gc.collect()
    assert [reference() for reference in left] == [None, None]
    assert ANSWER in kept()[0].answer


def test_it_answers_where_an_answer_can_t_be_put_together(log_lines: LogLines) -> None:
    def fail() -> None:
        raise KeyError("secret")

    ContentKeeper().keep(record_id=new_id(), account_id=1, prompt={}, answer=fail)
    (line,) = [line for line in log_lines() if line["event"] == "content_dropped"]
    assert line["cause"] == "KeyError"
