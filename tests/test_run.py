"""bin/run: from nothing to real answers in one command, and back to nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inference.fake_provider import FakeUpstream
from launch.environment import free_port
from tests.catalogue import query_rows
from tests.conftest import provider
from tests.processes import wait_until
from tests.servers import ROOT, Redis, Service, clean_environment, launched

TEXT = (
    "The honey bee lives in colonies of up to sixty thousand insects. Most of them are workers, which collect nectar "
    "and pollen, build the comb, feed the young and defend the hive. One queen lays all the eggs, up to two thousand "
    "a day in early summer. A few hundred drones live only to mate with young queens, and are driven out in autumn. "
    "In winter the colony forms a cluster around the queen, and the workers keep it warm by moving their muscles."
)


def test_it_answers_with_the_model_that_a_package_ships() -> None:
    with launched() as service:
        told = service.log.read_text()
        assert told.count("small demo model") == 2  # while it starts, and where the addresses are
        for line in ("dev_key_123 (free)", f"{service.base_url}/docs", f"{service.base_url}/admin/", "curl -s"):
            assert line in told
        answer = service.request("POST", "/summarize", {"text": TEXT, "length": "short"}, key="prod_key_456")
        assert answer.status == 200, answer.body
        assert 0 < answer.json()["summary_length"] < answer.json()["original_length"] == len(TEXT)
        group = members(service)
        assert len(group) >= 4, "the launcher, the model, the arbiter and a worker"
        service.process.send_signal(signal.SIGHUP)  # the terminal is closed
        assert service.process.wait(20) == 0
        wait_until(lambda: members(service) == [], "every process to end")
        assert "Traceback" not in service.log.read_text()


def test_it_keeps_its_state_through_a_kill_and_ledger_and_log_agree_after_it(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    env = {**provider(fake), "DATABASE_URL": f"sqlite:///{tmp_path}/kept.sqlite3"}
    with launched(env) as first:
        assert "shown this once" in first.log.read_text()
        key = first.create_key(account="acme", tier="premium", name="kept")
        answers = [first.request("POST", "/chat", {"message": f"Question {n}"}, key=key) for n in range(3)]
        first.process.kill()
        wait_until(lambda: all("valkey-server" in each for each in members(first)), "all but Valkey to follow")
        assert len(members(first)) == 2
        with launched(env) as second:
            assert "shown this once" not in second.log.read_text(), "the administrator's password"
            assert [pid for pid in pids(second) if "valkey-server" in command(pid)] == [], "it took those over"
            answers += [second.request("POST", "/chat", {"message": f"More {n}"}, key=key) for n in range(2)]
            tokens = sum(answer.json()["tokens_used"] for answer in answers)
            wait_until(lambda: recorded_tokens(second) == tokens, "the records")
            limits = second.request("GET", "/usage", key=key).json()["limits"]
            used = {(limit["owner"], limit["name"]): limit["used"] for limit in limits}
            assert used["key", "requests_per_minute"] == 5, "the minute's requests are known"
            told = run(second.env, "check_rollups").stdout
            assert told.splitlines() == ["The rollups agree with the log.", "The ledgers agree with the records."]
        wait_until(lambda: members(first) == [], "Valkey to end with the second")


def test_it_works_alone_in_its_folder_and_ends_the_rest_when_one_process_dies(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 30)  # too long for the path of a socket
    with launched({**provider(fake), "DATABASE_URL": f"sqlite:///{folder}/kept.sqlite3"}) as service:
        assert service.request("POST", "/chat", {"message": "Hello"}, key="dev_key_123").status == 200
        assert service.request("GET", "/health").json()["checks"]["limits"] == "healthy"
        twice = run({**service.env, "PORT": str(free_port())})
        assert (twice.returncode, twice.stdout) == (
            1,
            f"error: another bin/run works in {folder}: stop it, or name another database by DATABASE_URL\n",
        )
        (arbiter,) = servers(service)
        os.kill(arbiter, signal.SIGKILL)
        assert service.process.wait(40) == 1
        assert "error: the server ended by itself with status -9" in service.log.read_text()
        wait_until(lambda: members(service) == [], "every process to end")


def test_it_uses_the_store_that_the_settings_name(fake: FakeUpstream, own_redis: Redis) -> None:
    with launched({**provider(fake), "REDIS_URL": own_redis.url}) as service:
        commands = members(service)
        assert any("manage.py worker" in each for each in commands)
        assert not any("valkey-server" in each for each in commands)


@pytest.mark.parametrize("arguments", [[], ["check"]])
def test_it_says_what_is_wrong_with_an_env_file_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "env").write_text("PORT 8000\n")
    done = run({"ENV_FILE": str(tmp_path / "env")}, *arguments)
    assert (done.returncode, done.stdout) == (1, "error: env, line 1: write it as NAME=value\n")


def test_it_says_in_one_line_that_the_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run({"PORT": str(port), "ENV_FILE": os.devnull})
    assert done.returncode == 1
    assert done.stdout == f"error: port {port} is in use: stop what listens there, or choose another by PORT\n"


def test_it_runs_management_commands_with_the_settings_of_the_env_file(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(f"DATABASE_URL=sqlite:///{tmp_path}/named.sqlite3\n")
    done = run({"ENV_FILE": str(tmp_path / "env")}, "migrate", "--verbosity=0")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "named.sqlite3").exists()
    assert "bin/run COMMAND" in run({}, "--help").stdout


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run bin/run to its end."""
    command = [sys.executable, "bin/run", *arguments]
    return subprocess.run(
        command, env={**clean_environment(), **env}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def recorded_tokens(service: Service) -> int:
    """Return the tokens that were used, by the log."""
    query = "SELECT coalesce(sum(input_tokens + output_tokens), 0) AS used FROM monitoring_requestrecord"
    return int(query_rows(service, query)[0]["used"])


def servers(service: Service) -> list[int]:
    """List gunicorn's masters."""
    ours = [pid for pid in pids(service) if "manage.py serve" in command(pid)]
    return [pid for pid in ours if parent(pid) not in ours]


def pids(service: Service) -> list[int]:
    """List the living processes of the launcher's session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := stat(int(entry.name))) and fields[3] == str(service.process.pid):
            found += [int(entry.name)] if fields[0] != "Z" else []
    return found


def members(service: Service) -> list[str]:
    """List the command lines of the launcher's session."""
    return [command(pid) for pid in pids(service)]


def command(pid: int) -> str:
    """Return a process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def parent(pid: int) -> int:
    """Return a process's parent, 0 if it is gone."""
    fields = stat(pid)
    return int(fields[1]) if fields else 0


def stat(pid: int) -> list[str]:
    """Return state, parent, group, session and the following fields of proc(5)'s stat; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
