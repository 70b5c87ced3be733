"""Tools that speak OpenAI's protocol, unchanged, against the running platform: LangChain's client, and `llm`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from inference.fake_provider import FakeUpstream
from tests.catalogue import records
from tests.running import Platform, Served
from tests.servers import clean_environment

MODEL, EMBEDDER = "tools-chat", "tools-embedder"
#: A model at a provider with Anthropic's format.
CLAUDE = "tools-claude"
ON_BOTH = pytest.mark.parametrize("model", [MODEL, CLAUDE])
ANSWER = "You said: hello there"


@pytest.fixture(scope="module")
def key(platform: Platform, fake: FakeUpstream) -> Iterator[str]:
    fake.reset()
    with FakeUpstream() as claude:
        served = [
            Served(MODEL, [fake.base_url]),
            Served(CLAUDE, [claude.base_url], provider={"style": "anthropic"}),
            Served(EMBEDDER, [fake.base_url], kind="embedding"),
        ]
        yield platform.add(served, account="tools")


class Answer(BaseModel):
    """What a structured answer holds."""

    text: str


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@ON_BOTH
def test_it_serves_langchain(platform: Platform, key: str, model: str) -> None:
    at: dict[str, Any] = {"base_url": f"{platform.service.base_url}/v1", "api_key": SecretStr(key), "max_retries": 0}
    chat = ChatOpenAI(model=model, **at)
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("hello there")])
    assert answer.usage_metadata is not None
    assert (answer.content, answer.usage_metadata["output_tokens"]) == (ANSWER, 4)
    assert "".join(str(chunk.content) for chunk in chat.stream("hello there")) == ANSWER
    assert [str(each.content) for each in chat.batch(["hello there"] * 5)] == [ANSWER] * 5
    called = chat.bind_tools([add], tool_choice="add").invoke("hello there").tool_calls
    assert [(call["name"], call["args"]) for call in called] == [("add", {"a": 0, "b": 0})]
    assert chat.with_structured_output(Answer).invoke("hello there") == Answer(text="hello there")


def test_it_serves_langchain_s_responses_and_embeddings(platform: Platform, key: str) -> None:
    at: dict[str, Any] = {"base_url": f"{platform.service.base_url}/v1", "api_key": SecretStr(key), "max_retries": 0}
    assert ChatOpenAI(model=MODEL, use_responses_api=True, **at).invoke("hello there").text == ANSWER
    embeddings = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False, **at)
    assert [len(vector) for vector in embeddings.embed_documents(["one", "two"])] == [64, 64]


EXTRA_MODELS = """
- model_id: ours
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: ours
  supports_tools: true
  supports_schema: true
- model_id: ours-claude
  model_name: {claude}
  api_base: "{url}/v1"
  api_key_name: ours
- model_id: ours-responses
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: ours
  responses: true
"""


@pytest.fixture
def llm(platform: Platform, key: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of the command line, set up as its documentation says for OpenAI-compatible servers."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        EXTRA_MODELS.format(model=MODEL, claude=CLAUDE, url=platform.service.base_url)
    )
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


@pytest.mark.parametrize("model", ["ours", "ours-claude", "ours-responses"])
@pytest.mark.parametrize("option", [[], ["--no-stream"]])
def test_it_answers_the_llm_command_line(
    platform: Platform, llm: dict[str, str], key: str, model: str, option: list[str]
) -> None:
    assert run_llm(llm, key, "prompt", "-m", model, *option, "hello there") == ANSWER
    record = records(platform.service)[-1]
    assert record.endpoint == ("v1.responses" if model == "ours-responses" else "v1.chat.completions")
    assert record.usage_source == "provider"


def test_it_fills_the_llm_command_line_s_schemas(llm: dict[str, str], key: str) -> None:
    said = run_llm(llm, key, "prompt", "-m", "ours", "--schema", "name, age int", "hello")
    assert said == '{"name": "hello", "age": 0}'


def test_it_leaves_nothing_outside(tmp_path: Path) -> None:
    assert not (Path(os.environ["HOME"]) / ".config" / "io.datasette.llm").exists()
