"""The key's text: format, checksum, peppers."""

from __future__ import annotations

import re

import pytest
from pytest_django import Settings

from accounts import keys
from core import redaction


@pytest.mark.parametrize(("environment", "label"), [("production", "live"), ("development", "dev")])
def test_it_makes_a_different_key_each_time_that_names_its_environment(environment: str, label: str) -> None:
    made = {keys.generate_key(environment) for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(rf"ak_{label}_[0-9A-Za-z]{{49}}", key) and keys.is_well_formed(key) for key in made)


def test_it_refuses_every_typo_of_one_character() -> None:
    key = keys.generate_key("production")
    for position in range(len(redaction.PREFIX), len(key)):
        other = "x" if key[position] != "x" else "y"
        assert not keys.is_well_formed(key[:position] + other + key[position + 1 :])


@pytest.mark.parametrize("key", ["", "ak_", "ak_live_", "ak_live_short", "k" * 201, "schlüssel", "ak_live_\x00"])
def test_it_refuses_what_is_no_key(key: str) -> None:
    assert not keys.is_well_formed(key)


def test_it_accepts_plain_keys_in_development_only(settings: Settings) -> None:
    settings.ALLOW_PLAIN_KEYS = True
    assert keys.is_well_formed("dev_key_123")
    settings.ALLOW_PLAIN_KEYS = False
    assert not keys.is_well_formed("dev_key_123")


def test_it_shows_little_of_a_key() -> None:
    key = keys.generate_key("production")
    assert keys.shown_prefix(key) == key[:12]
    assert keys.shown_prefix("dev_key_123") == "dev"


def test_it_makes_a_digest_that_only_the_pepper_leads_to_and_tries_the_current_one_first(settings: Settings) -> None:
    settings.API_KEY_PEPPERS = ["new", "old"]
    new, old = keys.accepted_peppers()
    assert keys.digests("k") == (keys.digest_key("k", new), keys.digest_key("k", old))
    assert len({*keys.digests("k")}) == 2
    assert re.fullmatch(r"[0-9a-f]{64}", keys.digest_key("k", new))
    settings.API_KEY_PEPPERS = ["old", "new"]
    assert {pepper.id for pepper in keys.accepted_peppers()} == {new.id, old.id}, "wherever it stands"
    assert not {new.id, old.id} & {"new", "old"}
