"""The official Claude Code CLI, unchanged, with the settings of docs/anthropic.md, on providers of both formats."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.catalogue import Record, records
from tests.npm import npm_install
from tests.running import Asked, Platform, Reply, ScriptedProvider, Served, event, scripted_provider
from tests.servers import ROOT

SETTING = re.compile(r"^export (\w+)=(\S+)", re.MULTILINE)
SETTINGS = dict(SETTING.findall((ROOT / "docs" / "anthropic.md").read_text()))
PROGRAM = ("node_modules", "@anthropic-ai", "claude-code", "bin", "claude.exe")
TOOLS = ("Bash", "Read", "Write", "WebSearch")
TASK = "Do as you are told."
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
#: What a model thinks before it calls tools.
THOUGHT = "They want me to count."


@dataclass(frozen=True)
class Use:
    """A call of a tool by a model."""

    name: str
    input: dict[str, Any]
    id: str = "toolu_1"


def blocks_of(call: Asked) -> list[dict[str, Any]]:
    """Return the blocks of all of Anthropic's messages in a call; a content may be a text instead."""
    contents = (message["content"] for message in call.payload["messages"])
    return [block for content in contents if isinstance(content, list) for block in content]


class Format(ABC):
    """How providers of a format answer, and what they are told. A usage is 1000/20, of which 400 were cached."""

    model: str
    style: str

    @abstractmethod
    def plain(self, text: str) -> Reply:
        """Make an answer that is no stream."""

    @abstractmethod
    def stream(self, *said: str | Use) -> Reply:
        """Make the stream of a text or of calls of tools, which are thought about first."""

    @abstractmethod
    def results(self, call: Asked) -> dict[str, Any]:
        """Return the contents of the results of tools by their ids."""


class Messages(Format):
    """Anthropic's messages."""

    model, style = "claude-on-messages", "anthropic"
    usage = {"input_tokens": 600, "cache_read_input_tokens": 400, "cache_creation_input_tokens": 0}
    thought = {"type": "thinking", "thinking": THOUGHT, "signature": "c2lnbmF0dXJl"}

    def plain(self, text: str) -> Reply:
        content = [{"type": "text", "text": text}]
        ended = {"content": content, "stop_reason": "end_turn", "usage": {**self.usage, "output_tokens": 20}}
        return Reply(body=json.dumps({**self._begun, **ended}).encode())

    def stream(self, *said: str | Use) -> Reply:
        uses = [each for each in said if isinstance(each, Use)]
        usage = {**self.usage, "output_tokens": 1}
        events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": {**self._begun, "usage": usage}})]
        for at, (block, deltas) in enumerate(self._blocks(said)):
            events.append(("content_block_start", {"index": at, "content_block": block}))
            events += [("content_block_delta", {"index": at, "delta": delta}) for delta in deltas]
            events.append(("content_block_stop", {"index": at}))
        ended = {"stop_reason": "tool_use" if uses else "end_turn", "stop_sequence": None}
        events += [("message_delta", {"delta": ended, "usage": {"output_tokens": 20}}), ("message_stop", {})]
        return Reply(body=[event({"type": kind, **data}, kind) for kind, data in events])

    def results(self, call: Asked) -> dict[str, Any]:
        return {each["tool_use_id"]: each["content"] for each in blocks_of(call) if each["type"] == "tool_result"}

    @property
    def _begun(self) -> dict[str, Any]:
        named = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
        return {**named, "stop_reason": None, "stop_sequence": None}

    def _blocks(self, said: tuple[str | Use, ...]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        if isinstance(said[0], Use):
            parts = [{"type": f"{name}_delta", name: self.thought[name]} for name in ("thinking", "signature")]
            yield {"type": "thinking", "thinking": "", "signature": ""}, parts
        for each in said:
            if isinstance(each, str):
                yield {"type": "text", "text": ""}, [{"type": "text_delta", "text": each}]
            else:
                begun = {"type": "tool_use", "id": each.id, "name": each.name, "input": {}}
                yield begun, [{"type": "input_json_delta", "partial_json": json.dumps(each.input)}]


class Chat(Format):
    """OpenAI's chat completions, with the reasoning of other servers."""

    model, style = "claude-on-chat", "openai"
    usage: ClassVar[dict[str, Any]] = {
        "prompt_tokens": 1000,
        "completion_tokens": 20,
        "total_tokens": 1020,
        "prompt_tokens_details": {"cached_tokens": 400},
    }

    def plain(self, text: str) -> Reply:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return Reply(body=json.dumps({**body, "usage": self.usage}).encode())

    def stream(self, *said: str | Use) -> Reply:
        deltas: list[dict[str, Any]] = []
        uses = [each for each in said if isinstance(each, Use)]
        if uses:
            deltas.append({"role": "assistant", "reasoning_content": THOUGHT})
        for at, use in enumerate(uses):
            name = {"name": use.name, "arguments": ""}
            begun: dict[str, Any] = {"index": at, "id": use.id, "type": "function", "function": name}
            rest = {"index": at, "function": {"arguments": json.dumps(use.input)}}
            deltas += [{"tool_calls": [begun]}, {"tool_calls": [rest]}]
        deltas += [{"role": "assistant", "content": each} for each in said if isinstance(each, str)]
        choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if uses else "stop"})
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunks = [{**chunk, "choices": [choice]} for choice in choices]
        return Reply(body=[event(each) for each in (*chunks, {**chunk, "choices": [], "usage": self.usage}, "[DONE]")])

    def results(self, call: Asked) -> dict[str, Any]:
        messages = call.payload["messages"]
        return {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"}


BOTH = pytest.mark.parametrize("form", [Messages(), Chat()], ids=["messages", "chat"])


@dataclass
class Ran:
    """What one run of the CLI did: its result, its folder, and the calls that reached the provider."""

    done: subprocess.CompletedProcess[str]
    folder: Path
    calls: list[Asked]
    records: list[Record]

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done.stdout) if self.done.stdout else {}
        return found

    @property
    def said(self) -> tuple[int, str]:
        """Return the program's status and its last words."""
        return self.done.returncode, self.result.get("result", self.done.stderr)


@pytest.fixture(scope="module")
def providers(provider: ScriptedProvider) -> Iterator[dict[str, ScriptedProvider]]:
    with scripted_provider() as other:
        yield {"openai": provider, "anthropic": other}


@pytest.fixture(scope="module")
def key(platform: Platform, providers: dict[str, ScriptedProvider]) -> str:
    served = [
        Served(form.model, [providers[form.style].base_url], provider={"style": form.style})
        for form in (Messages, Chat)
    ]
    return platform.add(served, account="claude-code", max_output_tokens=64000)


@pytest.fixture
def run_claude(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str, tmp_path: Path
) -> Callable[..., Ran]:
    """Return a function that runs Claude Code on a model which answers by a script; no other host is reached."""
    program = npm_install("claude-code").joinpath(*PROGRAM)

    def run(form: Format, *replies: Reply, files: dict[str, bytes] | None = None, **changed: str) -> Ran:
        provider = providers[form.style]
        provider.script(form.model, *replies)
        folder = tmp_path / "work"
        folder.mkdir()
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        ours = {
            "ANTHROPIC_BASE_URL": platform.service.base_url,
            "ANTHROPIC_AUTH_TOKEN": key,
            "ANTHROPIC_MODEL": form.model,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": form.model,
        }
        assert set(ours) <= set(SETTINGS)
        env = {
            **nowhere,
            "NO_PROXY": "127.0.0.1",
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            **SETTINGS,
            **ours,
        }
        command = [str(program), "-p", TASK, "--output-format", "json", "--allowedTools", ",".join(TOOLS)]
        calls, recorded = len(provider.calls), len(records(platform.service))
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(command, cwd=folder, env={**env, **changed}, check=False, **options)
        return Ran(done, folder, provider.calls[calls:], records(platform.service)[recorded:])

    return run


@BOTH
def test_it_runs_a_command_and_writes_a_file(platform: Platform, run_claude: Callable[..., Ran], form: Format) -> None:
    counts = Use("Bash", {"command": "echo counted-$((40 + 2)) | tee out.txt", "description": "Count"})
    writes = Use("Write", {"file_path": "new.txt", "content": "a secret word"}, id="toolu_2")
    ran = run_claude(form, form.stream(counts, writes), form.stream("That is all."))
    assert ran.said == (0, "That is all.")
    assert (ran.folder / "out.txt").read_text() == "counted-42\n"
    assert (ran.folder / "new.txt").read_text() == "a secret word"
    results = {name: json.dumps(content) for name, content in form.results(ran.calls[-1]).items()}
    assert "counted-42" in results["toolu_1"]
    assert "new.txt" in results["toolu_2"]

    is_told = [{"anthropic-beta", "anthropic-version"} <= call.headers.keys() for call in ran.calls]
    assert is_told == [form.style == "anthropic"] * 2
    whole = ("v1.messages", 200, 1000, 400, 20, "provider")
    fields = [
        (r.endpoint, r.status, r.input_tokens, r.cached_tokens, r.output_tokens, r.usage_source) for r in ran.records
    ]
    assert fields == [whole, whole]
    assert [record.cost for record in ran.records] == [(600 * 2 + 400 * 1 + 20 * 10) * 1000] * 2
    used = {name: ran.result["usage"][name] for name in ("input_tokens", "cache_read_input_tokens", "output_tokens")}
    assert used == {"input_tokens": 1200, "cache_read_input_tokens": 800, "output_tokens": 40}
    assert [text for text in (TASK, "counted-", "secret word", THOUGHT) if text in platform.log] == []


def test_its_thinking_is_given_back_as_it_was(run_claude: Callable[..., Ran]) -> None:
    form = Messages()
    ran = run_claude(form, form.stream(Use("Bash", {"command": "true", "description": "Do"})), form.stream("Done."))
    assert ran.said == (0, "Done.")
    assert form.thought in blocks_of(ran.calls[1])
    assert [call.payload["thinking"]["type"] for call in ran.calls] == ["adaptive", "adaptive"]


@BOTH
def test_it_shows_an_image(run_claude: Callable[..., Ran], form: Format) -> None:
    reads = form.stream(Use("Read", {"file_path": "dot.png"}))
    ran = run_claude(form, reads, form.stream("A dot."), files={"dot.png": PNG})
    assert ran.said == (0, "A dot.")
    assert base64.b64encode(PNG).decode() in json.dumps(ran.calls[1].payload["messages"])


@BOTH
def test_it_asks_again_for_an_answer_that_broke_off(run_claude: Callable[..., Ran], form: Format) -> None:
    broken = Reply(body=[*form.stream("That is all.").body[:2]], breaks_off=True)
    ran = run_claude(form, broken, form.plain("That is all."))
    assert ran.said == (0, "That is all.")
    assert [call.payload.get("stream", False) for call in ran.calls] == [True, False]


def test_its_web_search_is_refused_by_name(run_claude: Callable[..., Ran]) -> None:
    form = Messages()
    searches = form.stream(Use("WebSearch", {"query": "the weather"}))
    ran = run_claude(form, searches, form.stream("I can't."))
    assert ran.said == (0, "I can't.")
    assert "web_search_20250305" in form.results(ran.calls[-1])["toolu_1"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("ANTHROPIC_MODEL", "no-such-model", "no-such-model"), ("ANTHROPIC_AUTH_TOKEN", "wrong", "Invalid API key")],
)
def test_it_is_told_what_is_wrong(run_claude: Callable[..., Ran], name: str, value: str, told: str) -> None:
    ran = run_claude(Messages(), Messages().stream("Never said."), CLAUDE_CODE_MAX_RETRIES="0", **{name: value})
    assert ran.said[0] == 1
    assert told in ran.said[1]
    assert ran.calls == []
