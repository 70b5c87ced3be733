"""The log: JSON lines with the request's id, and nothing of what a caller said."""

from __future__ import annotations

import json
import logging
import re
import sys
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
import structlog

from aiapi import logs
from inference.fake_provider import LEAK_MARKER, FakeUpstream
from inference.tests.fixtures import PROMPT, PROVIDER_SECRET, Api, LogLines
from operations.health import CHECKS, recent_reports


def line_of(lines: LogLines, event: str) -> dict[str, Any]:
    """Return the one line of an event."""
    (line,) = [line for line in lines() if line["event"] == event]
    return line


def test_it_writes_one_json_object_a_line_for_both_kinds_of_loggers(log_lines: LogLines) -> None:
    structlog.get_logger("ours").warning("something", number=1)
    logging.getLogger("theirs").warning("something of %s", "theirs\nin two lines")
    ours, theirs = log_lines()
    assert (ours["event"], ours["number"], ours["logger"], ours["level"]) == ("something", 1, "ours", "warning")
    assert (theirs["event"], theirs["logger"]) == ("something of theirs\nin two lines", "theirs")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", theirs["timestamp"])


def test_it_tells_of_each_request_under_its_id(api: Api, upstream: FakeUpstream, log_lines: LogLines) -> None:
    answer = api.post("/chat?query=hidden", {"message": "a"}, headers={"X-Request-ID": "label-1"})
    assert answer.status_code == 200
    line = line_of(log_lines, "request")
    assert (line["request_id"], line["method"], line["path"], line["status"]) == ("label-1", "POST", "/chat", 200)
    assert (line["account"], line["key"]) == (api.key.key.account.name, api.key.key.prefix)
    assert line["ms"] >= 0
    assert UUID(line["record_id"]).version == 7


def test_it_tells_of_health_checks_only_when_they_fail(
    api: Api, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.get("/health/ready", key=None).status_code == 200
    assert log_lines() == []
    monkeypatch.setitem(CHECKS, "database", lambda: 1 / 0)
    recent_reports.clear()
    assert api.get("/health/ready", key=None).status_code == 503
    assert line_of(log_lines, "request")["status"] == 503


def test_it_keeps_prompts_answers_and_keys_out(api: Api, upstream: FakeUpstream, log_lines: LogLines) -> None:
    api.chat()
    api.chat(temperature="warm " + PROMPT)
    api.post("/chat", f'{{"message": "{PROMPT}'.encode())
    api.post("/chat", {"message": "a", PROMPT: 1})
    upstream.set(faults={"http_400": 1})
    api.chat("another " + PROMPT)
    api.post("/chat", {"message": PROMPT}, key=api.key.plain + "x")
    api.get(f"/requests/{api.key.plain}")
    api.chat(headers={"X-Request-ID": api.key.plain})
    assert len(log_lines()) >= 6
    _assert_silent(log_lines, api)


def test_it_keeps_them_out_of_tracebacks(
    api: Api, upstream: FakeUpstream, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(call: Any) -> None:
        prompt, key = call.payload["messages"][1]["content"], api.key.plain
        try:
            raise ValueError(f"quotes {prompt} and {key}")
        except ValueError as error:
            error.add_note(f"a note on {prompt}")
            raise RuntimeError(f"quotes {prompt} again") from error

    monkeypatch.setattr("inference.api.native.answer", fail)
    assert api.chat().status_code == 500
    line = line_of(log_lines, "unhandled_exception")
    assert [part["exc_type"] for part in line["exception"]] == ["RuntimeError", "ValueError"]
    assert line["exception"][0]["frames"][-1]["name"] == "fail"
    assert line["request_id"]
    _assert_silent(log_lines, api)


def test_it_keeps_a_providers_words_out_of_the_chain_of_what_failed_after_it(
    api: Api, upstream: FakeUpstream, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.set(faults={"http_400": 1})
    monkeypatch.setattr("inference.call.Call.settle", lambda self, **fields: 1 / 0)
    assert api.chat().status_code == 500
    text = json.dumps(line_of(log_lines, "unhandled_exception"))
    assert "ErrorAnswer" in text
    _assert_silent(log_lines, api)


def test_it_writes_gunicorns_own_lines_alike_and_without_query_strings(log_lines: LogLines) -> None:
    try:
        raise ValueError(PROMPT)
    except ValueError:
        logging.getLogger("gunicorn.error").exception("Error handling request %s", f"/chat?message={PROMPT}")
    (line,) = log_lines()
    assert (line["event"], line["logger"]) == ("Error handling request /chat", "gunicorn.error")
    assert PROMPT not in json.dumps(line)


def test_it_keeps_the_messages_that_help(log_lines: LogLines) -> None:
    try:
        None.missing  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError:
        logging.getLogger("theirs").exception("failed")
    (line,) = log_lines()
    assert line["exception"][0]["exc_value"] == "'NoneType' object has no attribute 'missing'"


def test_it_silences_the_members_of_a_group(log_lines: LogLines) -> None:
    try:
        raise ExceptionGroup("of " + PROMPT, [ValueError(PROMPT), KeyError(PROMPT)])
    except ExceptionGroup:
        logging.getLogger("theirs").exception("failed")
    text = json.dumps(log_lines())
    assert "KeyError" in text
    assert PROMPT not in text


def _assert_silent(log_lines: LogLines, api: Api) -> None:
    text = json.dumps(log_lines(), ensure_ascii=False)
    for secret in (PROMPT, "zanzibar", "You said", api.key.plain, api.key.plain[20:], PROVIDER_SECRET, LEAK_MARKER):
        assert secret not in text


class Terminal(StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_it_writes_plain_lines_on_a_terminal_which_quote_as_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    line: Any = {"event": "answer_broke_off", "level": "error", "status": 500}
    try:
        raise ValueError(f"quotes {PROMPT}")
    except ValueError:
        line["exc_info"] = True
        for process in logs._rendered():
            line = process(None, "error", line)
    plain = re.sub(r"\x1b\[\d+m", "", line)
    assert re.match(r"\d\d:\d\d:\d\d \[error +\] answer_broke_off +status=500\n", plain)
    assert re.search(r'  File ".+test_logs.py", line \d+, in test_it_writes_plain_lines', plain)
    assert plain.endswith("\nValueError")
    assert PROMPT not in plain
