"""opencode, unchanged, with the settings that docs/openai.md gives, on providers of both formats."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.formats import ON_BOTH, Format, Use
from tests.npm import npm_install
from tests.running import Platform, ScriptedProvider, Served
from tests.servers import ROOT

SETTINGS = re.search(r"```json\n// opencode\.json\n(.*?)```", (ROOT / "docs" / "openai.md").read_text(), re.DOTALL)
#: Its packages for the two formats: that of the settings, and the one for Anthropic's.
PACKAGES = {"@ai-sdk/openai-compatible": "v1.chat.completions", "@ai-sdk/anthropic": "v1.messages"}
QUIET = ("MODELS_FETCH", "AUTOUPDATE", "DEFAULT_PLUGINS", "LSP_DOWNLOAD")
NEEDED = ("openai-compatible", "https://your.host/v1", "our-model")


@pytest.fixture(scope="module")
def key(platform: Platform, providers: dict[str, ScriptedProvider]) -> str:
    served = [
        Served(f"opencode-on-{style}", [each.base_url], provider={"style": style}) for style, each in providers.items()
    ]
    return platform.add(served, account="opencode", max_output_tokens=32000)


@pytest.fixture
def run_opencode(platform: Platform, key: str, tmp_path: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """Return a function that runs it with a model by a package, and returns its events; no other host is reached."""
    program = npm_install("opencode") / "node_modules" / "opencode-linux-x64" / "bin" / "opencode"
    if not program.exists():
        pytest.skip("its program is locked for Linux on x64 only")

    def run(model: str, package: str) -> list[dict[str, Any]]:
        assert SETTINGS is not None
        url = f"{platform.service.base_url}/v1"
        ours = dict(zip(NEEDED, (package.removeprefix("@ai-sdk/"), url, model), strict=True))
        settings = SETTINGS.group(1)
        for given, own in ours.items():
            assert given in settings
            settings = settings.replace(given, own)
        folder = tmp_path / "work"
        folder.mkdir()
        (folder / "opencode.json").write_text(settings)
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        env = {**nowhere, "NO_PROXY": "127.0.0.1", "HOME": str(tmp_path), "PATH": os.environ["PATH"], "AIAPI_KEY": key}
        env |= {f"OPENCODE_DISABLE_{name}": "1" for name in QUIET}
        command = [str(program), "run", "--pure", "--format", "json", "--title", "t", "Do as you are told."]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 90}
        done = subprocess.run(command, cwd=folder, env=env, check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@ON_BOTH
@pytest.mark.parametrize("package", PACKAGES)
def test_it_runs_a_command(
    platform: Platform,
    providers: dict[str, ScriptedProvider],
    run_opencode: Callable[[str, str], list[dict[str, Any]]],
    tmp_path: Path,
    form: Format,
    package: str,
) -> None:
    model, provider = f"opencode-on-{form.style}", providers[form.style]
    counts = Use("bash", {"command": "echo counted-$((40 + 2)) | tee out.txt", "description": "Count"})
    provider.script(model, form.stream(counts), form.stream("That is all."))
    parts = [each["part"] for each in run_opencode(model, package) if "part" in each]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["That is all."]
    assert (tmp_path / "work" / "out.txt").read_text() == "counted-42\n"
    assert "counted-42" in json.dumps(form.results(provider.calls_of(model)[-1]))
    used = [part["tokens"] for part in parts if part["type"] == "step-finish"]
    assert [(each["input"], each["cache"]["read"], each["output"]) for each in used] == [(600, 400, 20)] * 2
    query = f"SELECT endpoint, status, input_tokens FROM monitoring_requestrecord WHERE model = '{model}' ORDER BY id"  # noqa: S608
    whole = {"endpoint": PACKAGES[package], "status": 200, "input_tokens": 1000}
    assert platform.rows(query)[-2:] == [whole, whole]
