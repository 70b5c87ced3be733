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
from accounts.tests.factories import Cast, make_key, make_tier, secret_part, stored_text
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


@pytest.mark.django_db
class TestCreate:
    def test_it_makes_account_and_key_and_prints_the_key_once(self) -> None:
        make_tier("free")
        answer = json.loads(create("--json").splitlines()[-1])
        assert key_cache.find(answer["key"])
        assert (answer["account"], answer["name"], answer["tier"], answer["state"]) == ("acme", "ci", "free", "active")
        assert secret_part(answer["key"]) not in run("list") + run("list", "--json") + stored_text()

    def test_it_prints_the_key_for_people(self) -> None:
        make_tier("free")
        output = create()
        key = output.split()[-1]
        assert "It will not be shown again" in output
        assert key_cache.find(key)

    def test_it_uses_an_account_that_exists(self, cast: Cast) -> None:
        create(account="globex")
        assert Account.objects.filter(name="globex").count() == 1

    def test_it_sets_scopes_and_expiry(self) -> None:
        make_tier("free")
        create("--scope", "chat", "--scope", "keys:manage", "--expires-days", "1")
        key = ApiKey.objects.get()
        assert key.scopes == ["chat", "keys:manage"]
        assert key.expires_at

    def test_it_names_the_tiers_that_exist(self, cast: Cast) -> None:
        with pytest.raises(CommandError, match=r"^No tier is named gold\. Tiers: free\.$"):
            create(tier="gold")

    def test_it_says_how_to_make_tiers_where_there_are_none(self) -> None:
        with pytest.raises(CommandError, match=r"manage\.py bootstrap makes free and premium"):
            create(tier="gold")

    def test_it_names_the_keys_of_a_name_that_is_taken(self, cast: Cast) -> None:
        with pytest.raises(CommandError, match=r"^Account acme already has a key named owner\. Its keys: colleague, "):
            create(name="owner")

    def test_it_refuses_an_account_name_in_one_line(self) -> None:
        make_tier("free")
        with pytest.raises(CommandError, match=r"^name: Enter a valid .slug.[^\n]*$"):
            create(account="no slug")
        assert not Account.objects.exists()

    def test_it_leaves_no_account_when_the_key_is_refused(self) -> None:
        make_tier("free")
        with pytest.raises(CommandError):
            create(name="two\nlines")
        assert not Account.objects.exists()
        assert not AuditEntry.objects.filter(target="acme").exists()

    @pytest.mark.parametrize("days", ["-1", "0", "nan", "1e300", "soon"])
    def test_it_refuses_a_time_that_no_key_can_last(self, days: str) -> None:
        with pytest.raises(CommandError, match=f"{days} is not a number of days"):
            create(f"--expires-days={days}")


@pytest.mark.django_db
class TestList:
    def test_it_lists_a_table(self, cast: Cast) -> None:
        lines = run("list").splitlines()
        assert lines[0].split() == ["ACCOUNT", "NAME", "TIER", "MASKED", "STATE", "CREATED", "LAST", "USED"]
        assert [line.split()[:2] for line in lines[1:3]] == [["acme", "colleague"], ["acme", "expired"]]

    def test_it_lists_one_account_as_json_lines(self, cast: Cast) -> None:
        rows = [json.loads(line) for line in run("list", "--account", "acme", "--json").splitlines()]
        assert {row["name"]: row["state"] for row in rows} == {
            "colleague": "active",
            "expired": "expired",
            "owner": "active",
            "revoked": "revoked",
        }

    def test_it_says_how_to_make_the_first_key(self) -> None:
        assert run("list").startswith("No keys. Make one: manage.py key create")


@pytest.mark.django_db
class TestRotate:
    def test_it_prints_the_successor(self, cast: Cast) -> None:
        output = run("rotate", "--account", "acme", "--name", "owner", "--grace", "60", "--json")
        answer = json.loads(output.splitlines()[-1])
        assert answer["name"] == "owner-2"
        assert key_cache.find(answer["key"])
        assert key_cache.find(cast.owner.plain)

    def test_it_says_how_long_the_old_key_works(self, cast: Cast) -> None:
        assert "works for 86400 more seconds" in run("rotate", "--prefix", cast.owner.key.prefix)

    @pytest.mark.parametrize("grace", ["-5", "99999999999999999", "a day"])
    def test_it_refuses_a_grace_that_is_none(self, cast: Cast, grace: str) -> None:
        with pytest.raises(CommandError, match=f"{grace} is not a whole number from 0 to 7776000"):
            run("rotate", "--prefix", cast.owner.key.prefix, f"--grace={grace}")

    def test_it_refuses_a_revoked_key_in_one_line(self, cast: Cast) -> None:
        with pytest.raises(CommandError, match=r"^Key revoked .* is revoked: only a key that works can be rotated\.$"):
            run("rotate", "--account", "acme", "--name", "revoked")


@pytest.mark.django_db
class TestRevoke:
    def test_it_revokes_by_name(self, cast: Cast) -> None:
        assert run("revoke", "--account", "acme", "--name", "owner").startswith("Revoked owner")
        assert key_cache.find(cast.owner.plain) is None
        assert key_cache.find(cast.colleague.plain)

    @pytest.mark.parametrize("shown", ["prefix", "masked"])
    def test_it_revokes_by_what_is_shown(self, cast: Cast, shown: str) -> None:
        run("revoke", "--prefix", getattr(cast.owner.key, shown))
        assert key_cache.find(cast.owner.plain) is None

    def test_it_says_when_there_was_nothing_to_do(self, cast: Cast) -> None:
        assert "was already revoked" in run("revoke", "--account", "acme", "--name", "revoked")

    def test_it_names_the_keys_of_the_account(self, cast: Cast) -> None:
        with pytest.raises(CommandError, match=r"^Account globex has no key named owner\. Its keys: stranger\.$"):
            run("revoke", "--account", "globex", "--name", "owner")

    def test_it_refuses_a_prefix_of_several_keys(self, cast: Cast) -> None:
        ApiKey.objects.filter(pk=cast.stranger.key.pk).update(prefix=cast.owner.key.prefix)
        with pytest.raises(CommandError, match="Several keys have this prefix: acme/owner, globex/stranger"):
            run("revoke", "--prefix", cast.owner.key.prefix)

    def test_it_refuses_a_prefix_of_none(self, cast: Cast) -> None:
        with pytest.raises(CommandError, match="No key has this prefix"):
            run("revoke", "--prefix", "ak_live_nobo")

    def test_it_asks_which_key_is_meant(self) -> None:
        with pytest.raises(CommandError, match="--account NAME --name NAME, or --prefix PREFIX"):
            run("revoke", "--account", "acme")

    def test_it_is_audited_as_the_command(self) -> None:
        issued = make_key(name="ci")
        run("revoke", "--prefix", issued.key.prefix)
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action, entry.target) == ("command:key", "revoked", str(issued.key))


def environment(database: str) -> dict[str, str]:
    """Return the environment of a process on a database of its own."""
    return {"PATH": os.environ["PATH"], "DATABASE_URL": database}


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
    env = environment(url)
    assert manage(env, "migrate", "--verbosity=0").wait() == 0
    program = (
        "from accounts.models import *; Tier.objects.create(name='free'); Account.objects.create(name='a', max_keys=2)"
    )
    assert manage(env, "shell", "--verbosity=0", "--command", program).wait() == 0
    key = ("key", "create", "--account", "a", "--tier", "free", "--name")
    started = [manage(env, *key, f"n{number}") for number in range(3)]
    outcomes: list[Any] = [(process.communicate()[1].decode(), process.returncode) for process in started]
    assert sum(status == 0 for _, status in outcomes) == 2, outcomes
    assert all("already has 2 usable keys" in error for error, status in outcomes if status)
