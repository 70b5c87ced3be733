"""Agents of other libraries, unchanged, with a tool on providers of both formats: openai-agents and pydantic-ai."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import agents
import anthropic
import openai
import pytest
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.catalogue import records
from tests.formats import ON_BOTH, Format, Use
from tests.running import Platform, ScriptedProvider, Served

SAYS = "It is 42."
ADDS = Use("add", {"a": 40, "b": 2})
AS_STREAM = pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def key(platform: Platform, providers: dict[str, ScriptedProvider]) -> str:
    served = [
        Served(f"agent-on-{style}", [each.base_url], provider={"style": style}) for style, each in providers.items()
    ]
    return platform.add(served, account="agents", max_output_tokens=8000)


@pytest.fixture
def model(form: Format, providers: dict[str, ScriptedProvider], is_stream: bool) -> str:
    """Return the name of a model that calls the tool and then says what came."""
    make = form.stream if is_stream else form.plain
    name = f"agent-on-{form.style}"
    providers[form.style].script(name, make(ADDS), make(SAYS))
    return name


def check(platform: Platform, provider: ScriptedProvider, form: Format, model: str, endpoint: str) -> None:
    """Check that the provider was told the tool's result, and that both calls were recorded."""
    assert "42" in json.dumps(form.results(provider.calls_of(model)[-1])[ADDS.id])
    told = [(record.endpoint, record.status, record.usage_source) for record in records(platform.service)[-2:]]
    assert told == [(endpoint, 200, "provider")] * 2


@ON_BOTH
@AS_STREAM
def test_it_serves_openai_agents(
    platform: Platform, key: str, providers: dict[str, ScriptedProvider], form: Format, model: str, is_stream: bool
) -> None:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{platform.service.base_url}/v1", api_key=key, max_retries=0) as sdk:
            own = agents.OpenAIChatCompletionsModel(model=model, openai_client=sdk)
            agent = agents.Agent(name="Adder", instructions="Add.", model=own, tools=[agents.function_tool(add)])
            config = agents.RunConfig(tracing_disabled=True)
            if not is_stream:
                return (await agents.Runner.run(agent, "What is 40 + 2?", run_config=config)).final_output
            result = agents.Runner.run_streamed(agent, "What is 40 + 2?", run_config=config)
            async for _ in result.stream_events():
                pass
            return result.final_output

    assert asyncio.run(run()) == SAYS
    check(platform, providers[form.style], form, model, "v1.chat.completions")


@ON_BOTH
@AS_STREAM
@pytest.mark.parametrize("endpoint", ["v1.chat.completions", "v1.messages"])
def test_it_serves_pydantic_ai(
    platform: Platform,
    key: str,
    providers: dict[str, ScriptedProvider],
    form: Format,
    model: str,
    is_stream: bool,
    endpoint: str,
) -> None:
    async def run() -> str:
        url = platform.service.base_url
        own: Model
        if endpoint == "v1.messages":
            claude = anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
            own = AnthropicModel(model, provider=AnthropicProvider(anthropic_client=claude))
        else:
            own = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=key))
        agent = Agent(own, instructions="Add.", tools=[add])
        if not is_stream:
            return (await agent.run("What is 40 + 2?")).output
        async with agent.run_stream("What is 40 + 2?") as result:
            return await result.get_output()

    assert asyncio.run(run()) == SAYS
    check(platform, providers[form.style], form, model, endpoint)
