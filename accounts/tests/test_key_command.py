"""`manage.py key`, in this process and, where processes compete, in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.key_cache import key_cache
from accounts.models import Account, ApiKey, AuditEntry
from accounts.tests.factories import Cast, make_account, make_cast, make_key, make_tier, secret_part, stored_text
from tests.stores import Postgres

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    """Run the command and return what it printed."""
    output = StringIO()
    call_command("key", *arguments, stdout=output)
    return output.getvalue()


def create(*arguments: str, account: str = "acme", name: str = "ci", tier: str = "free") -> str:
    """Run `key create`."""
    return run("create", "--account", account, "--name", name, "--tier", tier, *arguments)


def refused(*arguments: str) -> str:
    """Run the command and return why it does nothing: one line."""
    with pytest.raises(CommandError) as raised:
        run(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.django_db
def test_it_makes_account_and_key_and_prints_the_key_once() -> None:
    make_tier("free")
    answer = json.loads(create("--json").splitlines()[-1])
    assert key_cache.find(answer["key"])
    assert (answer["account"], answer["name"], answer["tier"], answer["state"]) == ("acme", "ci", "free", "active")
    assert secret_part(answer["key"]) not in run("list") + run("list", "--json") + stored_text()
    output = create("--scope", "chat", "--scope", "keys:manage", "--expires-days", "1", name="other")
    assert "It will not be shown again" in output
    assert key_cache.find(output.split()[-1])
    key = ApiKey.objects.get(account__name="acme", name="other")
    assert key.scopes == ["chat", "keys:manage"]
    assert key.expires_at


@pytest.mark.django_db
def test_it_makes_neither_key_nor_account_where_something_is_wrong() -> None:
    creation = ["create", "--account", "acme", "--name", "ci", "--tier", "gold"]
    assert "manage.py bootstrap makes free and premium" in refused(*creation)
    make_key(account=make_account("other"), name="taken")
    creation[-1] = "free"
    assert refused(*creation, "--tier", "gold") == "No tier is named gold. Tiers: free."
    taken = refused(*creation, "--account", "other", "--name", "taken")
    assert taken == "Account other already has a key named taken. Its keys: taken."
    assert refused(*creation, "--account", "no slug").startswith("name: Enter a valid ")
    assert refused(*creation, "--name", "two\nlines")
    for days in ("-1", "0", "nan", "1e300", "soon"):
        assert f"{days} is not a number of days" in refused(*creation, f"--expires-days={days}")
    assert [account.name for account in Account.objects.all()] == ["other"]
    assert not AuditEntry.objects.filter(target="acme").exists()


@pytest.mark.django_db
def test_it_lists_keys_as_a_table_or_json_lines() -> None:
    assert run("list").startswith("No keys. Make one: manage.py key create")
    cast = make_cast()
    lines = run("list").splitlines()
    assert lines[0].split() == ["ACCOUNT", "NAME", "TIER", "MASKED", "STATE", "CREATED", "LAST", "USED"]
    assert [line.split()[:2] for line in lines[1:3]] == [["acme", "colleague"], ["acme", "expired"]]
    rows = [json.loads(line) for line in run("list", "--account", "acme", "--json").splitlines()]
    states = {"colleague": "active", "expired": "expired", "owner": "active", "revoked": "revoked"}
    assert {row["name"]: row["state"] for row in rows} == states
    assert {row["masked"] for row in rows} > {cast.owner.key.masked}


def test_it_rotates_a_key(cast: Cast) -> None:
    for grace in ("-5", "99999999999999999", "a day"):
        told = refused("rotate", "--prefix", cast.owner.key.prefix, f"--grace={grace}")
        assert f"{grace} is not a whole number from 0 to 7776000" in told
    told = refused("rotate", "--account", "acme", "--name", "revoked")
    assert told.endswith(" is revoked: only a key that works can be rotated.")
    answer = json.loads(run("rotate", "--account", "acme", "--name", "owner", "--grace", "60", "--json"))
    assert answer["name"] == "owner-2"
    assert key_cache.find(answer["key"])
    assert cast.owner.works()
    assert "works for 86400 more seconds" in run("rotate", "--prefix", cast.colleague.key.prefix)


def test_it_revokes_a_key_by_name_or_by_what_is_shown(cast: Cast) -> None:
    assert run("revoke", "--account", "acme", "--name", "owner").startswith("Revoked owner")
    entry = AuditEntry.objects.latest("pk")
    assert (entry.actor, entry.action, entry.target) == ("command:key", "revoked", str(cast.owner.key))
    assert (cast.owner.works(), cast.colleague.works()) == (False, True)
    assert "was already revoked" in run("revoke", "--account", "acme", "--name", "revoked")
    run("revoke", "--prefix", cast.colleague.key.prefix)
    run("revoke", "--prefix", cast.stranger.key.masked)
    assert (cast.colleague.works(), cast.stranger.works()) == (False, False)


def test_it_says_which_keys_could_be_meant(cast: Cast) -> None:
    ApiKey.objects.filter(pk=cast.stranger.key.pk).update(prefix=cast.owner.key.prefix)
    for arguments, told in (
        (("--account", "globex", "--name", "owner"), "Account globex has no key named owner. Its keys: stranger."),
        (("--prefix", cast.owner.key.prefix), "Several keys have this prefix: acme/owner, globex/stranger."),
        (("--prefix", "ak_live_nobo"), "No key has this prefix."),
        (("--account", "acme"), "Name the key: --account NAME --name NAME, or --prefix PREFIX."),
    ):
        assert told in refused("revoke", *arguments)


def manage(env: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """Start a management command."""
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_it_makes_no_more_keys_than_an_account_may_have_when_processes_compete(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/keys.sqlite3"
    if store == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database()
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": url}
    assert manage(env, "migrate", "--verbosity=0").wait() == 0
    program = (
        "from accounts.models import *; Tier.objects.create(name='free'); Account.objects.create(name='a', max_keys=2)"
    )
    assert manage(env, "shell", "--verbosity=0", "--command", program).wait() == 0
    key = ("key", "create", "--account", "a", "--tier", "free", "--name")
    started = [manage(env, *key, f"n{number}") for number in range(3)]
    outcomes: list[Any] = [(process.communicate()[1].decode(), process.returncode) for process in started]
    assert sum(status == 0 for _, status in outcomes) == 2, outcomes
    assert all("has its maximum of usable keys (2)" in error for error, status in outcomes if status)
