"""The protocols of POST /chat/completions and POST /completions.

Answers have choices. They are streamed in chunks, which end with `[DONE]`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from core.errors import ContentFiltered, UpstreamFailed
from core.json import to_json
from inference.protocols.base import (
    GIVEN_UP,
    PART_OVERHEAD,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    WireProtocol,
    choices_in,
    count_prompts,
    count_tokens,
    json_bytes,
    prompts_in,
)
from inference.protocols.content import (
    FUNCTIONS,
    content_bound,
    content_estimate,
    part_of,
    refuse_media,
    text_or,
    texts_in,
    tools_of,
)
from inference.protocols.events import END_OF_EVENT, BrokenStream, EventReader
from inference.protocols.parameters import (
    ANSWER_NAMES,
    MOST_ANSWERS,
    MOST_OUTPUT,
    OUTPUT_NAMES,
    REFUSED,
    SAMPLING,
    is_list_of_objects,
    is_objects,
    is_prompt,
    is_string,
    number,
    others,
    refuse,
    unsupported,
)
from inference.usage import NOTHING, Usage, is_count, parse_usage

#: Finish reasons of a complete answer: OpenAI's, and other servers' names for `stop`.
FINISHED = ("stop", "length", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence")
#: The empty usage of chunks before the one with the usage.
NO_USAGE = re.compile(rb',\s*"usage":\s*null')
#: The beginning of a chunk's choices that are not empty.
CHOICE = re.compile(rb'"choices":\s*\[\s*\{')
#: Fields of a message or a delta that the model did not write.
LABELS = ("role", "id", "type")
#: OpenAI's maximum for a completion that names none.
DEFAULT_OUTPUT = 16


class ChoicesProtocol(WireProtocol):
    """An endpoint whose answers have choices."""

    @abstractmethod
    def texts(self, body: Body) -> list[str]:
        """Return the texts of the answers, to compare their tokens with the usage."""

    def answers(self, payload: Payload) -> int:
        """Return `n`."""
        return int(payload.get("n") or 1)

    def is_of_all(self, reported: Usage, body: Body) -> bool:
        """Return whether the usage covers all answers."""
        return len(choices_in(body)) < 2 or not is_of_one_answer(reported.output_tokens, self.texts(body))

    def is_complete(self, body: Body) -> bool:
        """Return whether there are choices."""
        return isinstance(body.get("choices"), list) and bool(body["choices"])

    def is_finished(self, body: Body) -> bool:
        """Return whether there are choices, each with a finish reason of a complete answer."""
        choices = choices_in(body)
        return bool(choices) and all(choice.get("finish_reason") in FINISHED for choice in choices)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with the usage at its end, which the platform always needs."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Return a reader of chunks, which forwards the usage if the payload asks for it.

        The usage of prompts that are only scored is not compared with answers.
        """
        options, answers = payload.get("stream_options") or {}, self.answers(payload) if self.generates(payload) else 1
        return ChunkReader(forwards_usage=bool(options.get("include_usage")), answers=answers)


class ChunkReader(EventReader):
    """Reads chunks of chat completions and completions, which end with `[DONE]`.

    The platform always asks for the usage; it is forwarded only if the caller asked for it too.
    """

    def __init__(self, *, forwards_usage: bool, answers: int = 1) -> None:
        super().__init__()
        self._forwards_usage = forwards_usage
        self._answers = answers

    def read(self, event: bytes, body: Body) -> bytes:
        """Note the usage, and forward a chunk without it, or with it if the caller asked for it.

        Moonshot sends the usage in the only choice. A usage of 0/0 after another one is ignored.
        """
        choices = choices_in(body)
        self.service_tier = body.get("service_tier") or self.service_tier
        holders = [body, *(choices if self._answers == 1 else ())]
        usage = next(filter(None, (parse_usage(holder.get("usage")) for holder in holders)), None)
        if usage is not None and (usage != NOTHING or self.usage is None):
            self.usage, self._usage_is_early, self._usage_stands_alone = usage, False, not body.get("choices")
        elif self.usage is not None and any(map(_generates, choices)):
            self._usage_is_early = True
        if self._forwards_usage or b'"usage"' not in event:
            return event + END_OF_EVENT
        is_chunk = bool(body.get("choices")) or body.get("usage") is None
        return without_usage(event, body) if is_chunk else b""

    def read_done(self, event: bytes) -> bytes:
        """Note the end; raises BrokenStream if no choice came before it."""
        self.is_done = True
        if not any(CHOICE.search(events) for events in self._kept):
            raise BrokenStream("no choices")
        return event + END_OF_EVENT

    def has_generated(self) -> bool:
        """Return whether any output was received."""
        return any(_generates(chunk) for _, chunk in self._chunks())

    def stripped(self, events: bytes) -> bytes:
        """Return chunks without the empty usage, which would cause each to be parsed."""
        return events if self._forwards_usage else NO_USAGE.sub(b"", events)

    def is_of_all(self, reported: Usage) -> bool:
        """Return whether the usage covers all of several answers; a single answer is not counted."""
        if self._answers == 1:
            return True
        texts: defaultdict[int, list[str]] = defaultdict(list)
        for index, chunk in self._chunks():
            delta = chunk.get("delta")
            said = delta.get("content") if isinstance(delta, dict) else chunk.get("text")
            texts[index].append(said if isinstance(said, str) else "")
        return not is_of_one_answer(reported.output_tokens, ["".join(pieces) for pieces in texts.values()])

    def body(self) -> Body:
        """Return the choices, each joined from its pieces: all of its deltas, since reasoning and tools count too."""
        deltas, texts = defaultdict[int, list[str]](list), defaultdict[int, list[str]](list)
        reasons: dict[int, Any] = {}
        for index, chunk in self._chunks():
            deltas[index] += texts_in(chunk.get("delta"), besides=LABELS)
            texts[index] += [text] if isinstance(text := chunk.get("text"), str) else []
            reasons[index] = chunk.get("finish_reason") or reasons.get(index)
        choices = [
            {
                "message": {"content": "".join(deltas[each])},
                "text": "".join(texts[each]),
                "finish_reason": reasons[each],
            }
            for each in sorted(reasons)
        ]
        return {"choices": choices}

    def _chunks(self) -> Iterator[tuple[int, Body]]:
        """Yield every piece of a choice with the choice's index."""
        for event in self.events():
            for chunk in choices_in(event):
                yield (chunk["index"] if is_count(chunk.get("index")) else 0), chunk


def without_usage(event: bytes, body: Body) -> bytes:
    """Return an event without usage at its top level, in a choice, or in another object there (as Groq sends it)."""
    holders = [body, *choices_in(body), *(value for value in body.values() if isinstance(value, dict))]
    if not any("usage" in holder for holder in holders):
        return event + END_OF_EVENT
    for holder in holders:
        holder.pop("usage", None)
    fields = [line for line in event.split(b"\n") if not line.startswith(b"data:")]
    return b"\n".join([*fields, b"data: " + to_json(body)]) + END_OF_EVENT


def is_of_one_answer(output_tokens: int, texts: Sequence[str]) -> bool:
    """Return whether a provider's output tokens cover one of several answers only, as llama.cpp reports them.

    The provider's tokenizer may differ: a count lower by a fifth, and by a token for each text, is accepted.
    """
    return len(texts) > 1 and (count_tokens(texts, model="") - len(texts)) * 4 > output_tokens * 5


def _generates(choice: Body) -> bool:
    """Return whether a chunk's choice contains output."""
    return bool(choice.get("text")) or any(texts_in(choice.get("delta"), besides=LABELS))


check_content = text_or(part_of("refusal", "text", image="image_url"))


def check_messages(name: str, messages: Any) -> None:
    """Accept messages whose content is text, or images that can be bounded."""
    is_list_of_objects(name, messages)
    for at, message in enumerate(messages):
        check_content(f"{name}[{at}].content", message.get("content"))
        refuse_media(f"{name}[{at}]", message)


def only_text(name: str, value: Any) -> None:
    """Accept only the modality text: audio has another price."""
    if value != ["text"]:
        refuse(f"'{name}' can be [\"text\"] only here.", name, "unsupported_parameter")


class ChatProtocol(ChoicesProtocol):
    """Chat completions, for /v1/chat/completions and for the platform's own endpoints."""

    path = "/chat/completions"
    prompt_parameter = "messages"
    output_names = ("max_completion_tokens", "max_tokens")
    refused = {
        **REFUSED,
        **others(OUTPUT_NAMES, "max_completion_tokens", reads=["max_tokens"]),
        **others(ANSWER_NAMES, "n"),
    }
    checks = {
        **refused,
        **SAMPLING,
        "max_tokens": number(1, MOST_OUTPUT),
        "max_completion_tokens": number(1, MOST_OUTPUT),
        "n": number(1, MOST_ANSWERS),
        "functions": is_objects,
        "modalities": only_text,
        "tools": tools_of(*FUNCTIONS),
        "messages": check_messages,
    }

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON, the most of each image, and overhead."""
        messages = payload["messages"]
        parts = len(messages) + len(payload.get("tools") or []) + len(payload.get("functions") or [])
        return content_bound(messages, payload, without="messages", around=PART_OVERHEAD * parts)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum under the deployment's name: an unknown parameter would bound nothing.

        `store` is always false, so that the provider stores nothing.
        """
        kept = {name: value for name, value in payload.items() if name not in self.output_names}
        if "store" in kept:
            kept["store"] = False
        return {**kept, parameter: tokens}

    def count(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the messages, the schemas, the images and the answers."""
        prompt = content_estimate(payload["messages"], payload, model=model)
        answers = (texts_in(choice.get("message"), besides=LABELS) for choice in choices_in(body))
        return Usage(prompt, 0, count_tokens(chain.from_iterable(answers), model=model))

    def is_complete(self, body: Body) -> bool:
        """Return whether there are choices, all of them objects."""
        return super().is_complete(body) and all(isinstance(choice, dict) for choice in body["choices"])

    def texts(self, body: Body) -> list[str]:
        """Return the `content` of the answers, without reasoning, which some servers send twice."""
        messages = (choice.get("message") for choice in choices_in(body))
        contents = (message.get("content") for message in messages if isinstance(message, dict))
        return [content for content in contents if isinstance(content, str)]


class CompletionProtocol(ChoicesProtocol):
    """Completions of a bare prompt."""

    path = "/completions"
    prompt_parameter = "prompt"
    output_names = ("max_tokens",)
    refused = {
        **REFUSED,
        **others(OUTPUT_NAMES, "max_tokens"),
        **others(ANSWER_NAMES, "n", reads=["best_of"]),
        "prompt_embeds": unsupported("send texts or tokens as the prompt."),
        "tools": unsupported("completions call none.", off=[]),
        "functions": unsupported("completions call none.", off=[]),
    }
    checks = {
        **refused,
        **SAMPLING,
        "prompt": is_prompt,
        "suffix": is_string,
        "max_tokens": number(0, MOST_OUTPUT),
        "n": number(1, MOST_ANSWERS),
        "best_of": number(0, MOST_ANSWERS),
    }

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON; the suffix counts once for each prompt."""
        more = len(prompts_in(payload.get("prompt"))) - 1
        return REQUEST_OVERHEAD + json_bytes(payload) + more * json_bytes(payload.get("suffix") or "")

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_tokens or its default; at least 1, since vLLM generates a token even for 0."""
        asked = super().asked_output(payload)
        return DEFAULT_OUTPUT if asked is None else max(1, asked)

    def answers(self, payload: Payload) -> int:
        """Return the number of answers generated: the higher of `n` and `best_of`, for each prompt."""
        return max(super().answers(payload), int(payload.get("best_of") or 1)) * len(prompts_in(payload.get("prompt")))

    def generates(self, payload: Payload) -> bool:
        """Return False for `max_tokens: 0`: the prompts are only scored, and perhaps echoed."""
        return payload.get("max_tokens") != 0

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set max_tokens; 0 stays 0."""
        return {**payload, "max_tokens": tokens if self.generates(payload) else 0}

    def count(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the prompts and the answers, without the prompts echoed in them."""
        prompts, texts = prompts_in(payload.get("prompt")), self.texts(body)
        read, written = count_prompts(prompts, model=model), count_tokens(texts, model=model)
        echoed = read * len(texts) // len(prompts) if payload.get("echo") else 0
        suffixes = [str(payload.get("suffix") or "")] * len(prompts)
        output = max(0, written - echoed) if self.generates(payload) else 0
        return Usage(read + count_tokens(suffixes, model=model), 0, output)

    def texts(self, body: Body) -> list[str]:
        """Return the texts of the answers."""
        return [str(choice.get("text") or "") for choice in choices_in(body)]


chat_protocol = ChatProtocol()
completion_protocol = CompletionProtocol()


def answer_text(body: Body) -> str:
    """Return the text of the first choice; raises ContentFiltered, or UpstreamFailed if it is aborted or empty."""
    choice = body["choices"][0]
    message = choice.get("message")
    return usable_text(message.get("content") if isinstance(message, dict) else None, choice.get("finish_reason"))


def usable_text(text: Any, finish_reason: Any) -> str:
    """Return an answer's text; raises ContentFiltered, or UpstreamFailed if the answer is aborted or empty."""
    if finish_reason == "content_filter":
        raise ContentFiltered
    if finish_reason in GIVEN_UP or not isinstance(text, str) or not text.strip():
        raise UpstreamFailed
    return text
