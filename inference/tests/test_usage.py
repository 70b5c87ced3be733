"""Usage in the shapes that providers send, and what it costs. docs/usage.md has the table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from inference import usage as module
from inference.prices import Rates
from inference.usage import Usage, anthropic_usage, chat_usage, parse_usage

SHAPES: dict[str, tuple[dict[str, Any], Usage]] = {
    "OpenAI": (
        {
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 12, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
        Usage(20, 12, 9, reasoning_tokens=4),
    ),
    "OpenAI's embeddings": ({"prompt_tokens": 3, "total_tokens": 3}, Usage(3)),
    "OpenAI's responses": (
        {
            "input_tokens": 20,
            "output_tokens": 9,
            "total_tokens": 29,
            "input_tokens_details": {"cached_tokens": 12},
            "output_tokens_details": {"reasoning_tokens": 4},
        },
        Usage(20, 12, 9, reasoning_tokens=4),
    ),
    "Anthropic": (
        {
            "input_tokens": 5,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "output_tokens": 9,
        },
        Usage(135, 100, 9, 30, 20),
    ),
    "Anthropic with web searches": (
        {"input_tokens": 5, "output_tokens": 9, "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0}},
        Usage(5, 0, 9, web_searches=2),
    ),
    "Anthropic without a cache": ({"input_tokens": 5, "output_tokens": 9}, Usage(5, 0, 9)),
    "Anthropic through a chat endpoint that counts cached tokens in": (
        {
            "prompt_tokens": 135,
            "completion_tokens": 9,
            "total_tokens": 144,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
        },
        Usage(135, 100, 9, 30),
    ),
    "Anthropic through a chat endpoint that counts them beside": (
        {
            "prompt_tokens": 5,
            "completion_tokens": 9,
            "total_tokens": 144,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
        },
        Usage(135, 100, 9, 30),
    ),
    "OpenRouter": (
        {
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 10},
            "cost": 0.002,
        },
        Usage(20, 5, 9, 10),
    ),
    "DeepSeek": (
        {"prompt_tokens": 20, "completion_tokens": 9, "prompt_cache_hit_tokens": 12, "prompt_cache_miss_tokens": 8},
        Usage(20, 12, 9),
    ),
    "Moonshot": ({"prompt_tokens": 20, "completion_tokens": 9, "cached_tokens": 12}, Usage(20, 12, 9)),
    "xAI, whose reasoning comes beside the output": (
        {
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "total_tokens": 129,
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        Usage(20, 0, 109, reasoning_tokens=100),
    ),
    "reasoning above the output, without a total": (
        {"prompt_tokens": 20, "completion_tokens": 9, "reasoning_tokens": 100},
        Usage(20, 0, 109, reasoning_tokens=100),
    ),
    "Gemini through its compatible endpoint, whose thoughts show in the total": (
        {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 129},
        Usage(20, 0, 109, reasoning_tokens=100),
    ),
    "Gemini's usageMetadata": (
        {
            "promptTokenCount": 20,
            "candidatesTokenCount": 9,
            "thoughtsTokenCount": 100,
            "cachedContentTokenCount": 12,
            "totalTokenCount": 129,
        },
        Usage(20, 12, 109, reasoning_tokens=100),
    ),
    "details that are null": (
        {"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": None, "total_tokens": None},
        Usage(20, 0, 9),
    ),
    "details of another type": (
        {"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": "5"}},
        Usage(20, 0, 9),
    ),
    "negative details": (
        {"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": -1}},
        Usage(20, 0, 9),
    ),
    "a part above its whole": (
        {"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 50}},
        Usage(20, 20, 9),
    ),
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_reads_usage_in_every_shape(shape: str) -> None:
    sent, usage = SHAPES[shape]
    assert parse_usage(sent) == usage


@pytest.mark.parametrize(
    "sent",
    [
        None,
        {},
        [],
        "9",
        {"prompt_tokens": "9", "completion_tokens": 9},
        {"prompt_tokens": True, "completion_tokens": 9},
        {"prompt_tokens": -1, "completion_tokens": 9},
        {"prompt_tokens": 1.5, "completion_tokens": 9},
        {"prompt_tokens": None, "completion_tokens": 9},
        {"prompt_tokens": 9, "completion_tokens": None},
        {"prompt_tokens": 10**12, "completion_tokens": 9},
        {"input_tokens": 9},
        {"total_tokens": 9},
    ],
)
def test_it_takes_nothing_else_for_a_usage(sent: Any) -> None:
    assert parse_usage(sent) is None


counts = st.integers(0, 10**7)
FIELDS = [
    *(name for names in module.TOTALS for name in names[:2]),
    *(
        place
        for places in (module.CACHED, module.WRITTEN, module.WRITTEN_1H, module.REASONING, module.SEARCHES, module.ALL)
        for place in places
    ),
]


@given(st.dictionaries(st.sampled_from(FIELDS), counts))
def test_no_part_is_above_its_whole(flat: dict[str, int]) -> None:
    """Whatever a provider mixes: a cost is never below 0, nor above the dearest price of all tokens."""
    sent: dict[str, Any] = {}
    for place, value in flat.items():
        holder, _, name = place.rpartition(".")
        (sent.setdefault(holder, {}) if holder else sent)[name] = value
    usage = parse_usage(sent)
    if usage is not None:
        assert usage.cached_tokens + usage.cache_write_tokens <= usage.input_tokens
        assert usage.cache_write_1h_tokens <= usage.cache_write_tokens
        assert usage.reasoning_tokens <= usage.output_tokens
        rates = Rates(3, 1, 5, 4, 6, 7, 11)
        ceiling = rates.ceiling(usage.input_tokens)
        most = usage.input_tokens * ceiling.input + usage.output_tokens * ceiling.output
        usage = replace(usage, web_searches=0)
        assert 0 <= rates.cost(usage) <= -(-most // 1_000_000) + ceiling.request


@given(*[counts] * 6)
def test_a_usage_is_the_same_after_it_is_translated(
    fresh: int, cached: int, written: int, hour: int, output: int, reasoning: int
) -> None:
    hour, reasoning = min(hour, written), min(reasoning, output)
    usage = Usage(fresh + cached + written, cached, output, written, hour, reasoning)
    assert parse_usage(anthropic_usage(usage)) == usage == parse_usage(chat_usage(usage))


def test_the_docs_name_every_field() -> None:
    text = (Path(settings.BASE_DIR) / "docs" / "usage.md").read_text()
    assert [place for place in FIELDS if f"`{place}`" not in text] == []


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(0, 0, 0), 0),
        (Usage(1, 0, 0), 1),
        (Usage(1_000_000, 0, 0), 3),
        (Usage(1_000_000, 1_000_000, 0), 2),
        (Usage(1, 1, 1), 1),
        (Usage(0, 0, 1_000_001), 6),
        (Usage(3_000_000, 1_000_000, 2_000_000, 2_000_000, 1_000_000, 1_000_000), 2 + 4 + 8 + 5 + 9),
        (Usage(1, 1, 1, web_searches=3), 1 + 3 * 70),
    ],
)
def test_a_cost_is_rounded_up_once(usage: Usage, cost: int) -> None:
    rates = Rates(input=3, cached_input=2, output=5, cache_write=4, cache_write_1h=8, reasoning=9, search=70)
    assert rates.cost(usage) == cost


def test_a_long_prompt_decides_the_price_of_all_its_parts() -> None:
    long = Rates(input=6_000_000, cached_input=600_000, output=9_000_000)
    rates = Rates(input=3_000_000, cached_input=300_000, output=6_000_000, request=7, steps=((200, long),))
    assert rates.cost(Usage(200, 100, 10)) == 300 + 30 + 60 + 7
    assert rates.cost(Usage(201, 100, 10)) == 606 + 60 + 90
    assert rates.ceiling(200) == (3_000_000, 6_000_000, 7, 0)
    assert rates.ceiling(201) == (6_000_000, 9_000_000, 7, 0)
