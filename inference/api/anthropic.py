"""Anthropic's endpoints under /v1: messages, and the number of their tokens."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.limit_usage import anthropic_rate_headers
from accounts.limits.types import Admission
from core.errors import ApiError, UpstreamFailed
from inference.api.base import ModelEndpoint
from inference.api.errors import anthropic_error_body
from inference.api.openai import OpenAIEndpoint, checked_names, described
from inference.api.schema import MessageObject, MessagesRequest, TokenCount, TokenCountRequest
from inference.call import Call
from inference.catalog import Route
from inference.pipeline import accounted
from inference.protocols.base import Body
from inference.protocols.messages import count_input, messages_protocol
from inference.protocols.parameters import refuse_misspelt
from inference.upstream.client import upstream
from inference.upstream.routing import with_fallback
from inference.usage import is_count

#: Headers that are passed on to a provider like Anthropic, and what their values look like.
PASSED_ON = ("anthropic-beta", "anthropic-version")
HEADER_VALUE = re.compile(r"[A-Za-z0-9_.,: -]{1,1000}\Z")


def passed_on(request: Request) -> dict[str, str]:
    """Return Anthropic's headers of a request; one with another value than names and dates is left out."""
    given = {name: str(request.META.get(f"HTTP_{name.upper().replace('-', '_')}", "")) for name in PASSED_ON}
    return {name: value for name, value in given.items() if HEADER_VALUE.match(value)}


class AnthropicEndpoint(ModelEndpoint):
    """A POST of Anthropic's API."""

    def rate_headers(self, admission: Admission) -> dict[str, str]:
        """Return the rate headers, with Anthropic's names added."""
        return {**super().rate_headers(admission), **anthropic_rate_headers(admission)}


@described(
    "v1_messages", "Anthropic's messages, streams included, by a model of any provider", MessagesRequest, MessageObject
)
class MessagesView(AnthropicEndpoint, OpenAIEndpoint):
    """POST /v1/messages."""

    endpoint = "v1.messages"
    required_scope = "chat"
    protocol = messages_protocol

    def provider_headers(self, request: Request) -> dict[str, str]:
        """Return Anthropic's headers."""
        return passed_on(request)

    def error_body(self, error: ApiError) -> Body:
        """Return an error in Anthropic's shape."""
        return anthropic_error_body(error, self.call.trace.label)


class CountTokensView(AnthropicEndpoint):
    """POST /v1/messages/count_tokens."""

    endpoint = "v1.messages.count_tokens"
    required_scope = "chat"

    @extend_schema(
        operation_id="v1_messages_count_tokens",
        summary="Count the tokens of Anthropic's messages",
        description="As the provider counts them if it is like Anthropic, otherwise estimated. It costs nothing.",
        request=TokenCountRequest,
        responses=TokenCount,
    )
    def post(self, request: Request) -> Response:
        """Count the tokens of a prompt."""
        payload = dict(request.data)
        refuse_misspelt(payload, checked_names())
        messages_protocol.check({"max_tokens": 1, **payload})
        model = payload.pop("model")
        self.call.choose(messages_protocol, model)
        self.call.headers = passed_on(request)
        call = self.call.ask(payload, read=dict, shares_answer=False)
        with accounted(call):
            counted = _count_at_provider(call)
            if counted is None:
                counted = count_input(payload, model=call.routes[0].upstream_name if call.routes else "")
        return self.respond(call, {"input_tokens": counted})


def _count_at_provider(call: Call) -> int | None:
    """Return the number of tokens by a provider like Anthropic; None if there is none, or it can't count."""
    call.routes = tuple(route for route in call.routes if route.is_anthropic)
    if not call.routes:
        return None
    try:
        with call.trace.stage("upstream"):
            counted = with_fallback(call, partial(_ask_for_count, call), call.deadline)
    except UpstreamFailed:
        return None
    return counted if is_count(counted) else None


def _ask_for_count(call: Call, route: Route) -> Any:
    call.note_attempt(route)
    path = f"{messages_protocol.path}/count_tokens"
    return upstream.call(route, path, call.payload, seconds=call.deadline.left, headers=call.headers).get(
        "input_tokens"
    )
