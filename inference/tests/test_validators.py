"""What operators may enter about providers."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from pytest_django import Settings

from inference.models import Provider
from inference.validators import (
    is_forbidden_address,
    validate_api_key_variable,
    validate_extra_headers,
    validate_provider_url,
)


def complaints(**fields: Any) -> dict[str, list[str]]:
    """Return what a provider's form says of these fields."""
    provider = Provider(**{"name": "p", "base_url": "https://203.0.113.7/v1", **fields})
    try:
        provider.full_clean(validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        return error.message_dict
    return {}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("api_key_variable", ["OPENAI_API_KEY", "A_API_KEY", "TEAM_2_API_KEY"]),
        ("extra_headers", [{}, {"X-Project": "blue"}, {"api-key": "$AZURE_API_KEY"}, {"X-Empty": ""}]),
        ("base_url", ["https://203.0.113.7/v1", "http://10.1.2.3:8000/v1", "http://192.168.1.9"]),
        ("base_url", ["http://[2001:db8::1]/v1", "https://models.invalid/v1"]),  # the name does not resolve now
    ],
)
def test_it_takes_what_is_right(field: str, values: list[Any]) -> None:
    assert [complaints(**{field: value}) for value in values] == [{}] * len(values)


@pytest.mark.parametrize(
    "name",
    ["SECRET_KEY", "DATABASE_URL", "API_KEY_PEPPERS", "_API_KEY", "openai_api_key", "A_API_KEY\n", "A B_API_KEY"],
)
def test_it_takes_no_other_variable(name: str) -> None:
    with pytest.raises(ValidationError):
        validate_api_key_variable(name)


@pytest.mark.parametrize(
    "headers",
    [
        [], "X: y", None, {"Authorization": "Bearer x"}, {"authorization": "$A_API_KEY"}, {"Host": "x"},
        {"Content-Length": "1"}, {"X Y": "z"}, {"X-Y:": "z"}, {"": "z"}, {"X-Y": 1}, {"X-Y": None},
        {"X-Y": "a\r\nB: c"}, {"X-Y": "a\x00"}, {"X-Y": "é"}, {"X-Y": "$SECRET_KEY"}, {"X-Y": "$"},
        {"X-Api-Key": "sk-plain"}, {"Cookie": "a=b"}, {"X-Auth-Token": "plain"},
    ],
)  # fmt: skip
def test_it_takes_no_header_that_breaks_a_call_or_holds_a_secret(headers: Any) -> None:
    with pytest.raises(ValidationError):
        validate_extra_headers(headers)


def test_it_names_the_field_that_it_does_not_take() -> None:
    wrong = {"api_key_variable": "SECRET_KEY", "extra_headers": {"Host": "x"}}
    assert complaints(**wrong).keys() == wrong.keys()
    assert complaints(base_url="http://127.0.0.1:8080/v1")
    assert not complaints(base_url="http://127.0.0.1:8080/v1", from_environment=True)


@pytest.mark.parametrize(
    "url",
    [
        "", "models.example.com/v1", "ftp://203.0.113.7", "file:///etc/passwd", "http://", "https://:443",
        "http://user@203.0.113.7", "http://user:password@203.0.113.7", "http://203.0.113.7/?a=b",
        "http://203.0.113.7/#a", "http://[::1", "http://203.0.113.7:port/", "http://203.0.113.7:99999/",
        "http://127.0.0.1:8080/v1", "http://127.1/v1", "http://2130706433/", "http://0.0.0.0/", "http://localhost/v1",
        "http://[::1]/v1", "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/latest", "http://[fe80::1]/",
        "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://224.0.0.1/",
    ],
)  # fmt: skip
def test_it_takes_no_address_of_this_machine_or_of_its_cloud(url: str) -> None:
    with pytest.raises(ValidationError):
        validate_provider_url(url)


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("127.8.8.8", True),
        ("::ffff:169.254.1.1", True),
        ("64:ff9b::a9fe:a9fe", True),  # 169.254.169.254 by way of a NAT64
        ("64:ff9b::808:808", False),
        ("fe80::1%eth0", True),
        ("168.63.129.16", True),
        ("64:ff9b::a83f:8110", True),
        ("fd00:ec2::254", True),
        ("fd00:ec2:0::23", True),
        ("fd20:ce::254", True),
        ("fd00:c1::a9fe:a9fe", True),
        ("fd00:42::42", True),
        ("fd00:42::1", False),
        ("8.8.8.8", False),
        ("10.0.0.1", False),
    ],
)
def test_it_knows_addresses_that_no_provider_has(address: str, forbidden: bool) -> None:
    assert is_forbidden_address(address) is forbidden


def test_it_allows_this_machine_and_no_more_where_the_operator_says_so(settings: Settings) -> None:
    settings.LOOPBACK_PROVIDERS = True
    validate_provider_url("http://127.0.0.1:11434/v1")
    allowed = [address for address in ("127.0.0.1", "::1") if not is_forbidden_address(address)]
    assert allowed == ["127.0.0.1", "::1"]
    assert all(map(is_forbidden_address, ("224.0.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1")))
