"""The official Claude Code CLI, unchanged, with the settings of docs/anthropic.md, on providers of both formats."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.catalogue import Record, records
from tests.formats import ON_BOTH, THOUGHT, Format, Messages, Use, blocks_of
from tests.npm import npm_install
from tests.running import Asked, Platform, Reply, ScriptedProvider, Served
from tests.servers import ROOT

SETTING = re.compile(r"^export (\w+)=(\S+)", re.MULTILINE)
SETTINGS = dict(SETTING.findall((ROOT / "docs" / "anthropic.md").read_text()))
PROGRAM = ("node_modules", "@anthropic-ai", "claude-code", "bin", "claude.exe")
TOOLS = ("Bash", "Read", "Write", "WebSearch")
SEARCHING = "claude-that-searches"
TASK = "Do as you are told."
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


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
def key(platform: Platform, providers: dict[str, ScriptedProvider]) -> str:
    served = [
        Served(f"claude-on-{style}", [each.base_url], provider={"style": style}) for style, each in providers.items()
    ]
    anthropic = [providers["anthropic"].base_url]
    served.append(Served(SEARCHING, anthropic, provider={"style": "anthropic"}, prices={"per_search": "0.01"}))
    return platform.add(served, account="claude-code", max_output_tokens=64000)


@pytest.fixture
def run_claude(
    platform: Platform, providers: dict[str, ScriptedProvider], key: str, tmp_path: Path
) -> Callable[..., Ran]:
    """Return a function that runs Claude Code on a model which answers by a script; no other host is reached."""
    program = npm_install("claude-code").joinpath(*PROGRAM)

    def run(form: Format, *replies: Reply, files: dict[str, bytes] | None = None, **changed: str) -> Ran:
        provider = providers[form.style]
        provider.script(changed.get("ANTHROPIC_MODEL", f"claude-on-{form.style}"), *replies)
        folder = tmp_path / "work"
        folder.mkdir()
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        ours = {
            "ANTHROPIC_BASE_URL": platform.service.base_url,
            "ANTHROPIC_AUTH_TOKEN": key,
            "ANTHROPIC_MODEL": f"claude-on-{form.style}",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": f"claude-on-{form.style}",
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


@ON_BOTH
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


@ON_BOTH
def test_it_shows_an_image(run_claude: Callable[..., Ran], form: Format) -> None:
    reads = form.stream(Use("Read", {"file_path": "dot.png"}))
    ran = run_claude(form, reads, form.stream("A dot."), files={"dot.png": PNG})
    assert ran.said == (0, "A dot.")
    assert base64.b64encode(PNG).decode() in json.dumps(ran.calls[1].payload["messages"])


@ON_BOTH
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
    assert "no price for the provider's web search" in form.results(ran.calls[-1])["toolu_1"]


def test_its_web_search_passes_where_searches_have_a_price(run_claude: Callable[..., Ran]) -> None:
    form = Messages()
    searches = form.stream(Use("WebSearch", {"query": "the weather"}))
    ran = run_claude(
        form,
        searches,
        form.stream("It rains."),
        form.stream("Rain."),
        ANTHROPIC_MODEL=SEARCHING,
        ANTHROPIC_DEFAULT_HAIKU_MODEL=SEARCHING,
    )
    assert ran.said == (0, "Rain.")
    tools = [tool for call in ran.calls for tool in call.payload.get("tools", ()) if tool.get("max_uses")]
    assert [(tool["type"], tool["max_uses"]) for tool in tools] == [("web_search_20250305", 8)]
    assert "It rains." in json.dumps(form.results(ran.calls[-1])["toolu_1"])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("ANTHROPIC_MODEL", "no-such-model", "no-such-model"), ("ANTHROPIC_AUTH_TOKEN", "wrong", "Invalid API key")],
)
def test_it_is_told_what_is_wrong(run_claude: Callable[..., Ran], name: str, value: str, told: str) -> None:
    ran = run_claude(Messages(), Messages().stream("Never said."), CLAUDE_CODE_MAX_RETRIES="0", **{name: value})
    assert ran.said[0] == 1
    assert told in ran.said[1]
    assert ran.calls == []
