"""The official Claude Code CLI, unchanged, against the running platform."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.npm import npm_install
from tests.running import Asked, Platform, Reply, ScriptedProvider, Served, event, wait_until, scripted_provider


def message_of(*blocks: dict[str, Any], reason: str = "end_turn") -> Reply:
    usage = {"input_tokens": 1000, "output_tokens": 1}
    begun = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": {**begun, "usage": usage}})]
    for at, block in enumerate(blocks):
        kind = block["type"]
        empty = {**block, **({"text": ""} if kind == "text" else {"input": {}})}
        delta = (
            {"type": "text_delta", "text": block["text"]}
            if kind == "text"
            else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        )
        events.append(("content_block_start", {"index": at, "content_block": empty}))
        events.append(("content_block_delta", {"index": at, "delta": delta}))
        events.append(("content_block_stop", {"index": at}))
    ended = {"stop_reason": reason, "stop_sequence": None}
    events += [("message_delta", {"delta": ended, "usage": {"output_tokens": 20}}), ("message_stop", {})]
    return Reply(body=[event({"type": kind, **data}, kind) for kind, data in events])


@pytest.fixture(scope="module")
def anthropic():
    with scripted_provider() as p:
        yield p


def test_it(platform: Platform, anthropic: ScriptedProvider, tmp_path: Path) -> None:
    provider = anthropic
    name = "claude-sonnet-4-5"
    key = platform.add([Served(n, [provider.base_url], provider={"style": "anthropic"}) for n in (name, "claude-haiku-4-5")], account="claude")
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "echo counted-$((40 + 2)) | tee out.txt", "description": "Count"}}
    provider.script(name, message_of(call, reason="tool_use"), message_of({"type": "text", "text": "That is all."}))
    provider.script("claude-haiku-4-5", message_of({"type": "text", "text": "Haiku."}))
    program = npm_install("claude-code") / "node_modules" / "@anthropic-ai" / "claude-code" / "bin" / "claude.exe"
    folder = tmp_path / "work"
    folder.mkdir()
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    env = {
        "HOME": str(tmp_path), "PATH": os.environ["PATH"], **nowhere, "NO_PROXY": "127.0.0.1",
        "ANTHROPIC_BASE_URL": platform.service.base_url, "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": name, "ANTHROPIC_SMALL_FAST_MODEL": "claude-haiku-4-5",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1", "DISABLE_AUTOUPDATER": "1",
    }
    env |= json.loads(os.environ.get("EXTRA", "{}"))
    arguments = ["-p", "Do as you are told.", "--output-format", "json", "--allowedTools", "Bash,Write,Read", *json.loads(os.environ.get("ARGS", "[]"))]
    import time
    t = time.monotonic()
    trace = ["strace", "-f", "-e", "trace=connect", "-o", "/tmp/my-k/strace"] if os.environ.get("STRACE") else []
    done = subprocess.run([*trace, str(program), *arguments], cwd=folder, env=env, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    took = time.monotonic() - t
    with open("/tmp/my-k/out.txt", "w") as f:
        print(took, done.returncode, done.stdout, done.stderr, sep="\n", file=f)
        print(sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")), file=f)
    Path("/tmp/my-k/calls.json").write_text(json.dumps([vars(c) for c in provider.calls], indent=1))
    Path("/tmp/my-k/log.txt").write_text(platform.log)
    print(platform.rows("select * from monitoring_requestrecord"))
