"""What the image holds is enough to run: its files, environment and commands, tried without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from inference.fake_provider import FakeUpstream
from tests.conftest import settings_of
from tests.servers import Service, aiapi_server, clean_environment, launched
from tests.stores import Postgres, Redis
from tests.test_deploy import ROOT, instructions


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Lay out the image's /app: what .dockerignore lets through, and the static files collected as in the build."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    left_out = shutil.ignore_patterns("tests", "__pycache__", "*.pyc")
    with tempfile.TemporaryDirectory(prefix="aiapi-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in allowed:
            (folder / part).parent.mkdir(exist_ok=True)
            copy = partial(shutil.copytree, ignore=left_out) if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        collect = next(step for step in instructions("RUN") if "collectstatic" in step).split(" && ")[0]
        command = collect.replace("python ", f"{sys.executable} ", 1)
        subprocess.run(["sh", "-c", command], cwd=folder, env={**clean_environment(), **baked()}, check=True)
        yield folder


@pytest.fixture(scope="module")
def production(image: Path, fake: FakeUpstream, postgres: Postgres, own_redis: Redis) -> Iterator[Service]:
    """Run the image's command with its environment as its user, on PostgreSQL and Redis."""
    stores = {
        "DATABASE_URL": postgres.create_database(),
        "REDIS_URL": own_redis.url,
        "CACHE_URL": f"{own_redis.url[:-1]}1",
    }
    hosts = {
        "ALLOWED_HOSTS": "api.example.com",
        "TRUSTED_PROXIES": "1",
        "ADMIN_PASSWORD": "correct-horse-battery-staple",
    }
    complete = {**baked(), **stores, **hosts, **settings_of(fake)}
    with aiapi_server(complete, workers=2, root=image, user=image_user()) as server:
        yield server


def test_it_answers_the_image_s_health_check(production: Service) -> None:
    command = json.loads(instructions("HEALTHCHECK")[-1].partition("CMD ")[2])
    command[0] = sys.executable
    env = {**clean_environment(), "PORT": str(production.port)}
    assert subprocess.run(command, env=env, check=False).returncode == 0
    nobody_there = {**env, "PORT": "1"}
    assert subprocess.run(command, env=nobody_there, capture_output=True, check=False).returncode != 0


def test_it_serves_production_from_what_the_image_holds(production: Service) -> None:
    key = production.create_key(account="acme", tier="premium", name="first")
    headers = {"Host": "api.example.com", "X-Forwarded-Proto": "https"}
    answer = production.request("POST", "/chat", {"message": "Hello"}, key=key, headers=headers)
    assert answer.status == 200, answer.body
    page = production.request("GET", "/admin/login/", headers=headers)
    style = re.search(r'href="(/static/[^"]+\.css)"', page.body.decode())
    assert style, "the admin's pages name collected static files"
    assert production.request("GET", style.group(1), headers=headers).status == 200


def test_it_answers_probes_whatever_host_and_scheme_they_name(production: Service) -> None:
    for path in ("/health/live", "/health/ready"):
        assert production.request("GET", path, headers={"Host": "10.1.2.3:8000"}).status == 200, path


def test_it_runs_everything_in_one_container_by_the_command_of_the_docs(image: Path, fake: FakeUpstream) -> None:
    (line,) = re.findall(r"^docker run (.*) ai-api (.*)$", (ROOT / "docs" / "deployment.md").read_text(), re.MULTILINE)
    data = re.search(r"-v \S+:/app/(\S+)", line[0])
    assert data, "what it keeps would end with the container"
    folder = image / data.group(1)
    folder.mkdir(exist_ok=True)
    user = image_user()
    if user:
        shutil.chown(folder, user)
    env = {**baked(), **settings_of(fake), "DATABASE_URL": "", "PATH": image_path(image)}
    with launched(env, command=[str(shutil.which(line[1], path=env["PATH"]))], root=image, user=user) as service:
        assert service.request("POST", "/chat", {"message": "Hello"}, key="dev_key_123").status == 200
        report = service.request("GET", "/health").json()
        assert report["status"] == "healthy", report
        command = [line[1], "key", "list"]
        listed = subprocess.run(command, env=service.env, cwd=image, user=user, capture_output=True, check=False)
        assert b"demo" in listed.stdout, listed
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(40) == 0
    assert (folder / "aiapi.sqlite3").exists()
    assert list(folder.glob("valkey/*/appendonlydir")), "limits and records on their way are kept"


def test_it_says_that_the_image_has_no_model(image: Path) -> None:
    env = {**clean_environment(), **baked(), "PATH": image_path(image)}
    done = subprocess.run(["embedded"], env=env, cwd=image, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("error: no provider is configured: set OPENAI_API_KEY or OPENAI_BASE_URL")


def image_path(image: Path) -> str:
    """Return the image's PATH, with its /app laid out here and this Python's environment for its own."""
    path: str = re.findall(r"\bPATH=(\S+)", " ".join(instructions("ENV")))[0]
    own = path.replace("/app", str(image)).replace("/opt/venv/bin", str(Path(sys.executable).parent))
    return own.replace("$PATH", os.environ["PATH"])


def baked() -> dict[str, str]:
    """Return the environment that the image sets, but for the paths and addresses of a container."""
    pairs = re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV")))
    return {name: value for name, value in pairs if name not in ("PATH", "PORT", "HOST")}


def image_user() -> str | None:
    """Return a user without rights, where this one may become that and that one may run this Python."""
    if os.geteuid() != 0:
        return None
    try:
        subprocess.run([sys.executable, "-c", ""], user="nobody", check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return "nobody"
