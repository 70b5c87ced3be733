"""The official Codex CLI, unchanged, against the running platform, with the settings that docs/openai.md gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.formats import Messages, Use
from tests.npm import npm_install, run_node
from tests.running import Asked, Platform, Reply, ScriptedProvider, Served, event, wait_until
from tests.servers import ROOT

#: A model that Codex knows nothing of, and two of those that it sends other kinds of tools.
OWN, OLDER, NEWER = "our-model", "gpt-5.5", "gpt-6.2-sol"
#: A model at a provider with Anthropic's format.
CLAUDE = "our-claude"
SETTINGS = re.search(r"```toml\n(# ~/\.codex/config\.toml.*?)```", (ROOT / "docs" / "openai.md").read_text(), re.DOTALL)
SAYS_DONE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "That is all.", "annotations": []}],
}


def response_of(*items: dict[str, Any]) -> Reply:
    """Make the stream of a response of these items, whose usage is 1000/20."""
    usage = {"input_tokens": 1000, "output_tokens": 20, "total_tokens": 1020}
    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "usage": None}
    events: list[tuple[str, dict[str, Any]]] = [("created", {"response": {**response, "status": "in_progress"}})]
    for number, item in enumerate(items):
        events.append(("output_item.added", {"output_index": number, "item": item}))
        events.append(("output_item.done", {"output_index": number, "item": item}))
    events.append(("completed", {"response": {**response, "status": "completed", "output": items, "usage": usage}}))
    named = [(f"response.{name}", number, data) for number, (name, data) in enumerate(events)]
    return Reply(body=[event({"type": kind, "sequence_number": number, **data}, kind) for kind, number, data in named])


def call_of(kind: str, number: int, **more: Any) -> dict[str, Any]:
    """Make an item in which a model calls a tool of the caller."""
    return {"type": kind, "id": f"item_{number}", "call_id": f"call_{number}", "status": "completed", **more}


@dataclass
class Ran:
    """What one run of the CLI did: its events, its folder, and the calls that reached the provider."""

    done: subprocess.CompletedProcess[str]
    folder: Path
    calls: list[Asked]

    @property
    def said(self) -> str:
        items = [event.get("item", {}) for event in map(json.loads, self.done.stdout.splitlines())]
        return "".join(item["text"] for item in items if item.get("type") == "agent_message")

    def inputs(self, kind: str) -> list[dict[str, Any]]:
        """Return the items of a type in the input of the last call."""
        return [item for item in self.calls[-1].payload["input"] if item["type"] == kind]


@pytest.fixture(scope="module", autouse=True)
def _served(platform: Platform, providers: dict[str, ScriptedProvider]) -> None:
    served = [Served(name, [providers["openai"].base_url]) for name in (OWN, OLDER, NEWER)]
    served.append(Served(CLAUDE, [providers["anthropic"].base_url], provider={"style": "anthropic"}))
    platform.add(served, account="codex", max_output_tokens=32000)


@pytest.fixture
def run_codex(platform: Platform, providers: dict[str, ScriptedProvider], tmp_path: Path) -> Callable[..., Ran]:
    """Return a function that runs Codex on a model which answers by a script; nothing but this machine is reached."""
    program = npm_install("codex") / "node_modules" / "@openai" / "codex" / "bin" / "codex.js"
    arguments = ["exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]

    def run(model: str, *replies: Reply, without: str = "") -> Ran:
        provider = providers["anthropic" if model == CLAUDE else "openai"]
        provider.script(model, *replies)
        assert SETTINGS is not None
        settings = SETTINGS.group(1).replace("https://your.host/v1", f"{platform.service.base_url}/v1")
        assert without in settings
        (tmp_path / "config.toml").write_text(settings.replace(without, ""))
        folder = tmp_path / "work"
        folder.mkdir()
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        home = {"CODEX_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        env = {**home, **nowhere, "NO_PROXY": "127.0.0.1", "AIAPI_KEY": platform.key}
        done = run_node("node", [str(program), *arguments, "--model", model, "Do as you are told."], folder, env=env)
        return Ran(done, folder, provider.calls_of(model))

    return run


def test_it_runs_a_command_and_reads_its_output(platform: Platform, run_codex: Callable[..., Ran]) -> None:
    command = {"cmd": "echo counted-$((40 + 2)) | tee out.txt"}
    asks = call_of("function_call", 1, name="exec_command", arguments=json.dumps(command))
    ran = run_codex(OWN, response_of(asks), response_of(SAYS_DONE))
    assert (ran.done.returncode, ran.said) == (0, "That is all."), ran.done.stdout + ran.done.stderr
    assert (ran.folder / "out.txt").read_text() == "counted-42\n"
    assert "counted-42" in ran.inputs("function_call_output")[0]["output"]
    (group,) = [tool for tool in ran.calls[0].payload["tools"] if tool["type"] == "namespace"]
    assert {tool["type"] for tool in group["tools"]} == {"function"}, "it goes on as Codex sent it"
    query = f"SELECT status, input_tokens, usage_source FROM monitoring_requestrecord WHERE model = '{OWN}'"  # noqa: S608
    whole = {"status": 200, "input_tokens": 1000, "usage_source": "provider"}
    wait_until(lambda: platform.rows(query) == [whole, whole], "the records of both calls")


def test_it_does_the_same_by_a_provider_with_anthropics_format(
    platform: Platform, run_codex: Callable[..., Ran]
) -> None:
    form = Messages()
    command = Use("exec_command", {"cmd": "echo counted-$((40 + 2)) | tee out.txt"})
    ran = run_codex(CLAUDE, form.stream(command), form.stream("That is all."))
    assert (ran.done.returncode, ran.said) == (0, "That is all."), ran.done.stdout + ran.done.stderr
    assert (ran.folder / "out.txt").read_text() == "counted-42\n"
    assert "counted-42" in json.dumps(form.results(ran.calls[-1]))
    assert ran.calls[0].path == "/v1/messages"
    query = f"SELECT endpoint, status, usage_source FROM monitoring_requestrecord WHERE model = '{CLAUDE}'"  # noqa: S608
    whole = {"endpoint": "v1.responses", "status": 200, "usage_source": "provider"}
    wait_until(lambda: platform.rows(query) == [whole, whole], "the records of both calls")


def test_it_searches_tools_and_patches_files(run_codex: Callable[..., Ran]) -> None:
    patch = "*** Begin Patch\n*** Add File: new.txt\n+hello\n*** End Patch\n"
    searches = call_of("tool_search_call", 1, execution="client", arguments={"query": "spawn an agent"})
    patches = call_of("custom_tool_call", 2, name="apply_patch", input=patch)
    ran = run_codex(OLDER, response_of(searches), response_of(patches), response_of(SAYS_DONE))
    assert (ran.done.returncode, ran.said) == (0, "That is all."), ran.done.stdout + ran.done.stderr
    assert (ran.folder / "new.txt").read_text() == "hello\n"
    assert ran.inputs("tool_search_output")[0]["tools"][0]["type"] == "namespace"
    assert "new.txt" in ran.inputs("custom_tool_call_output")[0]["output"]


def test_it_brings_tools_in_its_input_and_has_agents_write_to_each_other(run_codex: Callable[..., Ran]) -> None:
    code = "const ran = await tools.exec_command({cmd: 'echo counted-$((40 + 2))'}); text(ran.output);"
    runs = call_of("custom_tool_call", 1, name="exec", namespace="functions", input=code)
    task = {"task_name": "helper", "message": "Help.", "fork_turns": "none"}
    spawns = call_of("function_call", 2, name="spawn_agent", namespace="collaboration", arguments=json.dumps(task))
    waits = call_of("function_call", 3, name="wait_agent", namespace="collaboration", arguments='{"timeout_ms": 20000}')
    ran = run_codex(NEWER, *map(response_of, (runs, spawns, waits, SAYS_DONE)))
    assert (ran.done.returncode, ran.said) == (0, "That is all."), ran.done.stdout + ran.done.stderr
    assert "counted-42" in json.dumps(ran.calls[-1].payload["input"])
    kinds = {item["type"] for call in ran.calls for item in call.payload["input"]}
    assert {"additional_tools", "agent_message", "custom_tool_call_output"} <= kinds


def test_it_is_told_which_tool_the_provider_would_run(run_codex: Callable[..., Ran]) -> None:
    ran = run_codex(OWN, response_of(SAYS_DONE), without='web_search = "disabled"')
    assert ran.done.returncode != 0
    assert "'web_search'" in ran.done.stdout


def test_it_asks_again_for_a_response_that_broke_off(run_codex: Callable[..., Ran]) -> None:
    whole = response_of(SAYS_DONE)
    broken = Reply(body=[*whole.body[:2]], breaks_off=True)
    ran = run_codex(OWN, broken, whole)
    assert (ran.done.returncode, ran.said) == (0, "That is all."), ran.done.stdout + ran.done.stderr


def test_it_is_told_in_mid_stream_that_its_context_is_too_long(
    provider: ScriptedProvider, run_codex: Callable[..., Ran]
) -> None:
    error = {"code": "context_length_exceeded", "message": "Too long."}
    failed = {"id": "resp_1", "object": "response", "status": "failed", "error": error}
    end = event({"type": "response.failed", "sequence_number": 1, "response": failed}, "response.failed")
    before = len(provider.calls_of(OWN))
    ran = run_codex(OWN, Reply(body=[*response_of().body[:1], end]))
    assert ran.done.returncode != 0
    assert "context window" in ran.done.stdout
    assert len(provider.calls_of(OWN)) == before + 1
