"""The launcher's parts: settings, requirements, ports, and processes that live and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from launch import LaunchError, environment, install
from launch.checks import Step, run_steps, summary
from launch.install import run_logged
from launch.processes import Group, Stopped
from launch.valkey import Valkey
from tests.processes import is_running, wait_until

BIN = Path(__file__).resolve().parents[1] / "bin"
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_it_reads_env_files_as_people_write_them() -> None:
    text = """
        # a comment
        PLAIN=value
        export EXPORTED = spaced
        QUOTED="with # and = inside"  # a comment
        SINGLE='as it is'
        COMMENTED=value # a comment
        EMPTY=
        EXPLAINED= # a comment
    """
    assert environment.parse(textwrap.dedent(text)) == {
        "PLAIN": "value",
        "EXPORTED": "spaced",
        "QUOTED": "with # and = inside",
        "SINGLE": "as it is",
        "COMMENTED": "value",
        "EMPTY": "",
        "EXPLAINED": "",
    }


def test_it_names_the_line_of_an_env_file_that_it_cannot_read() -> None:
    for line in ("no assignment", "2ND=digit first", "with space=value"):
        with pytest.raises(LaunchError, match=r"\.env, line 2: write it as NAME=value"):
            environment.parse(f"GOOD=1\n{line}")


def test_it_lets_the_outside_win_over_the_env_file_which_can_have_another_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=9000\nHOST=::1\n")
    (tmp_path / "other").write_text("PORT=9001\n")
    loaded = environment.load(tmp_path, {"PORT": "8001", "HOST": "", "OTHER": ""})
    assert loaded == {"PORT": "8001", "HOST": "::1", "OTHER": ""}
    assert environment.load(tmp_path, {"ENV_FILE": "other"})["PORT"] == "9001"
    assert environment.load(tmp_path / "elsewhere", {}) == {}
    with pytest.raises(LaunchError, match="gone can't be read"):
        environment.load(tmp_path, {"ENV_FILE": "gone"})


def test_it_says_in_one_line_which_addresses_it_cannot_take() -> None:
    for port in ("http", "0", "65536", "-1", "80.5"):
        with pytest.raises(LaunchError, match="PORT must be a whole number from 1 to 65535"):
            environment.address({"PORT": port})
    with pytest.raises(LaunchError, match=r"can't listen on 192\.0\.2\.1:8000 .*set HOST and PORT"):
        environment.require_free_port("192.0.2.1", 8000)


def test_it_knows_when_a_provider_is_configured() -> None:
    for env in ({"OPENAI_API_KEY": "sk"}, {"OPENAI_BASE_URL": "http://h/v1"}, {"OPENAI_API_KEY_FILE": "/run/key"}):
        assert environment.has_provider(env)
    assert not environment.has_provider({"OPENAI_API_KEY": "", "OPENAI_MODEL": "m"})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run no installation in an environment that is whole; return what would have run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(install, "run_logged", lambda title, command, log, fix="": commands.append(command))
    monkeypatch.setattr(install, "_can_compile", lambda: False)
    monkeypatch.setattr(install, "_is_usable", lambda folder: True)
    return commands


def test_it_installs_a_requirement_file_again_only_when_it_changed_or_the_environment_is_broken(
    tmp_path: Path, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [install.BASE, install.LOCAL]
    for name in names:
        (tmp_path / name).write_text("one==1\n")
    for _ in range(2):
        install.ensure_environment(tmp_path, names)
    assert [command[-1] for command in ran] == [str(tmp_path / name) for name in names]
    assert ["--no-deps" in command for command in ran] == [False, True]
    (tmp_path / install.BASE).write_text("one==2\n")
    install.ensure_environment(tmp_path, names)
    assert len(ran) == 3
    monkeypatch.setattr(install, "_is_usable", lambda folder: False)
    (tmp_path / ".venv" / "bin").mkdir()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    install.ensure_environment(tmp_path, [])
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == [".lock"]
    assert ran[3][1:3] == ["-m", "venv"]


def test_it_goes_on_without_what_is_optional_and_says_so(
    tmp_path: Path, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(title: str, command: list[str], log: Path, fix: str = "") -> None:
        raise LaunchError("no such header")

    monkeypatch.setattr(install, "run_logged", fail)
    monkeypatch.setattr(install, "_can_compile", lambda: True)
    (tmp_path / install.FAST).write_text("one==1\n")
    install.ensure_environment(tmp_path, [])
    assert capsys.readouterr().out == "going on without requirements-fast.txt, which is optional: no such header\n"


def test_it_tells_a_failed_command_in_one_line_and_keeps_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "print('a'); print('ERROR: no such package'); print('a hint'); raise SystemExit(1)"
    log = tmp_path / "log" / "install.log"
    with pytest.raises(LaunchError) as raised:
        run_logged("Installing", [sys.executable, "-c", script], log, fix="check the network")
    assert str(raised.value) == (f"Installing failed: ERROR: no such package; check the network (whole output: {log})")
    assert log.read_text() == "a\nERROR: no such package\na hint\n"
    assert capsys.readouterr().out == "Installing ...\n  a\n  ERROR: no such package\n  a hint\n"


def test_it_prints_nothing_of_a_command_that_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "install.log"
    run_logged("Installing", [sys.executable, "-c", "print('Collecting noise')"], log)
    assert capsys.readouterr().out == "Installing ...\n  done in 0 s\n"
    assert log.read_text() == "Collecting noise\n"


def test_it_ends_the_whole_group_when_one_member_ends(tmp_path: Path) -> None:
    group = Group()
    with pytest.raises(LaunchError, match="the server did not answer within 0 seconds"):
        group.wait_until(lambda: False, timeout=0, what="the server")
    try:
        group.start("the sleeper", SLEEPER, os.environ)
        dying = [sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"]
        group.start("the model", dying, os.environ, log=tmp_path / "log" / "model.log")
        with pytest.raises(LaunchError, match="the model ended by itself with status 3: out of luck"):
            group.watch()
    finally:
        group.stop()
    assert all(member.process.poll() is not None for member in group.members)


def test_it_tells_how_a_fork_ended_and_ends_those_that_go_on() -> None:
    script = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(BIN)!r})
        from launch import LaunchError
        from launch.processes import Group
        group = Group()
        group.run("a good step", lambda: print("done", flush=True))
        for step in (lambda: sys.exit("no database"), lambda: 1 / 0):
            try:
                group.run("a step", step)
            except LaunchError as error:
                print(error, flush=True)
        group.members.clear()
        group.fork("the sleeper", lambda: time.sleep(60))
        group.fork("the server", lambda: os.kill(os.getpid(), signal.SIGKILL))
        try:
            group.watch()
        except LaunchError as error:
            print(error, flush=True)
        group.stop()
        print([member.process.poll() for member in group.members])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=30
    )
    failed = "a step failed: see above"
    killed = "the server ended by itself with status -9"
    assert done.stdout.splitlines() == ["done", failed, failed, killed, "[-15, -9]"]
    assert done.stderr.startswith("no database\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_it_lets_a_fork_that_is_told_to_end_at_once_end_as_itself() -> None:
    script = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(BIN)!r})
        from launch.processes import Group, Stopped, end_on_signals
        end_on_signals()
        fork = os.fork
        def told():
            pid = fork()
            os.kill(os.getpid(), signal.SIGTERM)
            return pid
        os.fork = told
        group = Group()
        try:
            group.fork("the sleeper", lambda: time.sleep(60))
        except Stopped:
            print(group.members[0].process.wait())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "-15\n", "both are told, and the launcher still knows its fork"


def test_it_ends_the_group_when_the_launcher_is_killed_outright() -> None:
    script = f"""
        import os, sys, time
        sys.path.insert(0, {str(BIN)!r})
        from launch.processes import Group, Stopped
        group = Group()
        group.start("the sleeper", {SLEEPER!r}, os.environ)
        print(group.members[0].process.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        sleeper = int(launcher.stdout.readline())
        launcher.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(sleeper), "the member to follow its launcher")


def test_it_starts_no_store_that_the_environment_names_and_says_that_there_is_no_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launch.valkey.shutil.which", lambda name: None)
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
        store = Valkey(Path(folder), {"CACHE_URL": "redis://elsewhere"})
        assert store.settings() == {}, "before the first start"
        store.installation.parent.mkdir(parents=True)
        store.installation.write_text("one")
        assert store.settings() == {"REDIS_URL": f"unix://{folder}/var/valkey/one/state.sock"}
        with pytest.raises(LaunchError, match="install valkey-server or redis-server, or set REDIS_URL"):
            store.start(Group(), f"{folder}/bin/python")


def test_it_ends_those_that_serve_others_after_the_others(tmp_path: Path) -> None:
    told = tmp_path / "told"
    group = Group()
    for name, delay in (("store", 0.0), ("web", 0.5)):
        script = (
            "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); print('up', flush=True); "
            f"signal.sigwait([15]); time.sleep({delay}); open({str(told)!r}, 'a').write({name + ' '!r})"
        )
        log = tmp_path / name
        group.start(name, [sys.executable, "-c", script], os.environ, log, serves_others=name == "store")
        wait_until(lambda at=log: at.exists() and at.read_text() != "", name)  # type: ignore[misc]
    group.stop()
    assert told.read_text() == "web store "


def test_it_goes_on_after_a_failed_check_ends_what_it_left_and_sums_up(capfd: pytest.CaptureFixture[str]) -> None:
    script = f"import subprocess; print(subprocess.Popen({SLEEPER!r}).pid); raise SystemExit(1)"
    good = Step("good", [sys.executable, "-c", "print('quiet')"])
    results = run_steps([Step("bad", [sys.executable, "-c", script]), good], os.environ)
    assert summary(results, 1.0) == 1
    printed = capfd.readouterr().out
    assert "quiet" not in printed
    assert printed.rstrip().endswith("steps: 1 passed, 1 failed")
    left = int(next(line for line in printed.splitlines() if line.isdigit()))
    wait_until(lambda: not is_running(left), "what the check left behind to end")


def test_it_ends_all_checks_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def children() -> set[int]:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}

    def interrupt(text: str) -> None:
        started.extend(children() - before)
        raise Stopped(signal.SIGINT)

    before = children()
    monkeypatch.setattr("launch.checks.say", interrupt)
    with pytest.raises(Stopped):
        run_steps([Step(name, SLEEPER) for name in ("one", "two")], os.environ)
    assert len(started) == 2
    assert not any(is_running(pid) for pid in started)
