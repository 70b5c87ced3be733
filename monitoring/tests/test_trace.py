"""The W3C trace that a request belongs to: passed on when it is well formed, dropped when it is not."""

from __future__ import annotations

import pytest

from accounts.keys import generate_key
from core.telemetry.trace import begin_trace, current_trace, passed_on

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_it_takes_a_caller_s_label_unless_it_is_malformed_or_holds_a_key() -> None:
    assert begin_trace("mine.1_ak_live-2").label == "mine.1_ak_live-2"
    for sent in ("", "two words", "x" * 65, generate_key("production"), f"x-{generate_key('development')}"):
        trace = begin_trace(sent)
        assert trace.label == str(trace.id)


@pytest.mark.parametrize(
    "sent", [PARENT, f"00-{TRACE}-{SPAN}-00", f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-more"]
)
def test_it_passes_on_a_trace_as_it_came(sent: str) -> None:
    assert begin_trace(None, traceparent=sent).passed_on == {"traceparent": sent}


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"{PARENT}, {PARENT}",
        f"{PARENT}\n",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 300}",
    ],
)
def test_it_drops_what_is_no_trace(sent: str | None) -> None:
    assert begin_trace(None, traceparent=sent, tracestate="vendor=1").passed_on == {}


def test_it_passes_on_the_state_of_a_trace() -> None:
    assert begin_trace(None, traceparent=PARENT, tracestate="a=1,b=2").passed_on["tracestate"] == "a=1,b=2"
    assert "tracestate" not in begin_trace(None, traceparent=PARENT, tracestate="a=1\r\nX: y").passed_on
    assert "tracestate" not in begin_trace(None, traceparent=PARENT, tracestate="x" * 513).passed_on


def test_it_tells_providers_of_the_request_at_hand_only() -> None:
    assert passed_on() == {}
    token = current_trace.set(begin_trace(None, traceparent=PARENT))
    assert passed_on() == {"traceparent": PARENT}
    current_trace.reset(token)
    assert passed_on() == {}
