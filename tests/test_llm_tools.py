"""Tools that speak OpenAI's protocol, unchanged, against the running platform: LangChain's client, and `llm`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from inference.fake_provider import FakeUpstream
from tests.catalogue import Served, records, set_up
from tests.servers import Service, aiapi_server, clean_environment, fake_upstream

MODEL, EMBEDDER = "tools-chat", "tools-embedder"
ANSWER = "You said: hello there"


@pytest.fixture(scope="module")
def own_fake() -> Iterator[FakeUpstream]:
    """Run a provider of this module's own."""
    with fake_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Service]:
    """Run the platform."""
    with aiapi_server(prepared(), prepare=False) as service:
        yield service


@pytest.fixture(scope="module")
def key(platform: Service, own_fake: FakeUpstream) -> str:
    """Return a key for the models."""
    served = [Served(MODEL, [own_fake.base_url]), Served(EMBEDDER, [own_fake.base_url], kind="embedding")]
    return set_up(platform, served)


@pytest.fixture
def chat(platform: Service, key: str) -> ChatOpenAI:
    """Return LangChain's client."""
    return ChatOpenAI(model=MODEL, base_url=f"{platform.base_url}/v1", api_key=SecretStr(key), max_retries=0)


class Answer(BaseModel):
    """What a structured answer holds."""

    text: str


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_it_chats_with_langchain(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("hello there")])
    assert answer.content == ANSWER
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 4


def test_it_streams_with_langchain(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream("hello there"))
    assert "".join(str(chunk.content) for chunk in chunks) == ANSWER


async def _all(chat: ChatOpenAI) -> list[str]:
    return [str(answer.content) for answer in await chat.abatch(["hello there"] * 5)]


def test_it_answers_langchain_s_batches(chat: ChatOpenAI) -> None:
    import asyncio

    assert asyncio.run(_all(chat)) == [ANSWER] * 5


def test_it_calls_langchain_s_tools(chat: ChatOpenAI) -> None:
    answer = chat.bind_tools([add], tool_choice="add").invoke("hello there")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 0, "b": 0})]


def test_it_fills_langchain_s_structures(chat: ChatOpenAI) -> None:
    assert chat.with_structured_output(Answer).invoke("hello there") == Answer(text="hello there")


def test_it_answers_langchain_by_responses(platform: Service, key: str) -> None:
    url = f"{platform.base_url}/v1"
    chat = ChatOpenAI(model=MODEL, base_url=url, api_key=SecretStr(key), use_responses_api=True, max_retries=0)
    assert chat.invoke("hello there").text == ANSWER


def test_it_embeds_for_langchain(platform: Service, key: str) -> None:
    embeddings = OpenAIEmbeddings(
        model=EMBEDDER,
        base_url=f"{platform.base_url}/v1",
        api_key=SecretStr(key),
        check_embedding_ctx_length=False,
        max_retries=0,
    )
    assert [len(vector) for vector in embeddings.embed_documents(["one", "two"])] == [64, 64]


EXTRA_MODELS = """
- model_id: ours
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: ours
  supports_tools: true
  supports_schema: true
- model_id: ours-responses
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: ours
  responses: true
"""


@pytest.fixture
def llm(platform: Service, key: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of the command line, set up as its documentation says for OpenAI-compatible servers."""
    (tmp_path / "extra-openai-models.yaml").write_text(EXTRA_MODELS.format(model=MODEL, url=platform.base_url))
    # Without plugins: that of the local model, whose file the platform uses, needs more than is installed.
    return {**clean_environment(), "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "LLM_OURS_KEY": key}


def run_llm(env: dict[str, str], key: str, *arguments: str) -> str:
    """Run the command line, and return what it prints."""
    command = [str(Path(sys.executable).parent / "llm"), *arguments, "--key", key]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("model", ["ours", "ours-responses"])
@pytest.mark.parametrize("option", [[], ["--no-stream"]])
def test_it_answers_the_llm_command_line(
    platform: Service, llm: dict[str, str], key: str, model: str, option: list[str]
) -> None:
    assert run_llm(llm, key, "prompt", "-m", model, *option, "hello there") == ANSWER
    record = records(platform)[-1]
    assert record.endpoint == ("v1.responses" if model == "ours-responses" else "v1.chat.completions")
    assert record.usage_source == "provider"


def test_it_fills_the_llm_command_line_s_schemas(llm: dict[str, str], key: str) -> None:
    said = run_llm(llm, key, "prompt", "-m", "ours", "--schema", "name, age int", "hello")
    assert said == '{"name": "hello", "age": 0}'


def test_it_leaves_nothing_outside(tmp_path: Path) -> None:
    assert not (Path(os.environ["HOME"]) / ".config" / "io.datasette.llm").exists()
