"""From headers to an identity; the same answer for every key that is not usable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.http import HttpRequest
from django.test import RequestFactory
from django_ratelimit import core
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.request import Request

from accounts import keys
from accounts.authentication import ApiKeyAuthentication, sent_key
from accounts.key_cache import AuthenticatedKey
from accounts.tests.factories import Cast, IssuedKey, make_key
from core.errors import AddressDenied, ApiError, KeyInvalid, TooManyFailures

pytestmark = pytest.mark.django_db


def request(key: str = "", address: str = "192.0.2.1", **headers: str) -> HttpRequest:
    """Make a request with a key in X-API-Key."""
    sent = {"HTTP_X_API_KEY": key} if key else {}
    return RequestFactory().get("/stats", REMOTE_ADDR=address, **sent, **headers)  # type: ignore[arg-type]  # headers


def authenticate(sent: HttpRequest) -> AuthenticatedKey | None:
    """Authenticate as a view does; None is what makes the view ask for a key."""
    found = ApiKeyAuthentication().authenticate(Request(sent))
    return found and found[0]


def accepted(sent: HttpRequest) -> AuthenticatedKey:
    """Return who sent a request with a good key."""
    identity = authenticate(sent)
    assert identity is not None
    return identity


def refusal(sent: HttpRequest) -> ApiError:
    """Return how a request is refused."""
    with pytest.raises(ApiError) as caught:
        authenticate(sent)
    return caught.value


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"HTTP_X_API_KEY": "k"}, "k"),
        ({"HTTP_X_API_KEY": " k "}, "k"),
        ({"HTTP_AUTHORIZATION": "Bearer k"}, "k"),
        ({"HTTP_AUTHORIZATION": "bearer   k"}, "k"),
        ({"HTTP_X_API_KEY": "k", "HTTP_AUTHORIZATION": "Bearer other"}, "k"),
        ({"HTTP_X_API_KEY": "", "HTTP_AUTHORIZATION": "Bearer k"}, "k"),
        ({"HTTP_AUTHORIZATION": "Basic k"}, None),
        ({"HTTP_AUTHORIZATION": "Bearer "}, None),
        ({"HTTP_AUTHORIZATION": "k"}, None),
        ({}, None),
    ],
)
def test_it_finds_the_key_in_either_header(headers: dict[str, Any], key: str | None) -> None:
    assert sent_key(RequestFactory().get("/", **headers)) == key


def test_it_never_takes_one_tenant_for_another(cast: Cast) -> None:
    for issued, names in ((cast.stranger, ("globex", "stranger")), (cast.owner, ("acme", "owner"))):
        identity = accepted(request(issued.plain))
        assert (identity.account_name, identity.key_name) == names


def test_it_leaves_it_to_the_view_to_ask_for_a_key() -> None:
    assert authenticate(request()) is None
    assert ApiKeyAuthentication().authenticate_header(Request(request())) == 'Bearer realm="api"'


def unusable(cast: Cast) -> list[str]:
    """List keys of every kind that can't be used."""
    typo = cast.owner.plain[:-1] + ("x" if cast.owner.plain[-1] != "x" else "y")
    known = [issued.plain for issued in (cast.revoked, cast.expired, cast.disabled)]
    return [*known, typo, keys.generate_key("production"), "nonsense", "schlüssel"]


def test_it_answers_every_unusable_key_alike(cast: Cast) -> None:
    answers = [refusal(request(key)) for key in unusable(cast)]
    assert {(type(error), error.status, error.error_code, error.detail) for error in answers} == {
        (KeyInvalid, 401, "invalid_api_key", "Invalid API key")
    }


def test_it_refuses_a_typo_without_a_query(cast: Cast, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    typo = cast.owner.plain[:-1] + ("x" if cast.owner.plain[-1] != "x" else "y")
    with django_assert_num_queries(0):
        refusal(request(typo))


def restricted() -> IssuedKey:
    """Make a key for two networks."""
    return make_key(allowed_ips=["192.0.2.0/28", "2001:db8::/32"])


@pytest.mark.parametrize("address", ["192.0.2.15", "2001:db8::1", "::ffff:192.0.2.3"])
def test_it_lets_allowed_addresses_in(address: str) -> None:
    issued = restricted()
    assert accepted(request(issued.plain, address)).key_id == issued.key.pk


@pytest.mark.parametrize("address", ["192.0.2.16", "2001:db9::1", "::ffff:192.0.2.99", ""])
def test_it_keeps_other_addresses_out(address: str) -> None:
    error = refusal(request(restricted().plain, address))
    assert (type(error), error.status) == (AddressDenied, 403)


def test_it_believes_no_forwarded_address_without_a_trusted_proxy(settings: Settings) -> None:
    settings.TRUSTED_PROXIES = 0
    sent = request(restricted().plain, "198.51.100.1", HTTP_X_FORWARDED_FOR="192.0.2.1")
    assert isinstance(refusal(sent), AddressDenied)


class TestFailedAttempts:
    @pytest.fixture(autouse=True)
    def _three_a_minute(self, settings: Settings) -> None:
        settings.FAILED_KEY_RATE = "3/m"

    def fail(self, times: int, **changes: Any) -> ApiError:
        """Send so many bad keys and return the last refusal."""
        return [refusal(request("bad", **changes)) for _ in range(times)][-1]

    def test_it_limits_bad_keys_by_address(self) -> None:
        assert isinstance(self.fail(3), KeyInvalid)
        error = self.fail(1)
        assert isinstance(error, TooManyFailures)
        assert error.status == 429

    def test_it_tells_the_second_from_which_on_another_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The windows of an address begin at a second of its own: moments all over one are tried."""
        now = [1_000_000.0]
        monkeypatch.setattr(core, "time", SimpleNamespace(time=lambda: now[0]))
        for second in range(0, 60, 7):
            now[0] = 1_000_000 + 3600 * second + second + 0.5
            error = self.fail(4)
            assert isinstance(error, TooManyFailures)
            assert 1 <= error.retry_after <= 60
            assert error.headers["Retry-After"] == str(error.retry_after)
            now[0] = int(now[0]) + error.retry_after - 0.001
            assert isinstance(self.fail(1), TooManyFailures)
            now[0] += 0.001
            assert isinstance(self.fail(1), KeyInvalid)

    def test_it_counts_an_ipv6_network_as_one(self) -> None:
        self.fail(3, address="2001:db8:1:2::1")
        assert isinstance(self.fail(1, address="2001:db8:1:2::ffff"), TooManyFailures)
        assert isinstance(self.fail(1, address="2001:db8:1:3::1"), KeyInvalid)

    def test_it_counts_no_request_without_a_key(self) -> None:
        for _ in range(10):
            assert authenticate(request()) is None
        assert isinstance(self.fail(1), KeyInvalid)
