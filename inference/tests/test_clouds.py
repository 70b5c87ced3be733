"""Vertex AI and Bedrock: calls with tokens of Google's credentials, and with signatures of AWS credentials."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.core.exceptions import ValidationError

from core.json import to_json
from inference.catalog import Route
from inference.fake_provider import FakeUpstream
from inference.models import Provider
from inference.prices import Rates
from inference.provider_setup import PRESETS, provider_models
from inference.tests.fixtures import LogLines
from inference.upstream import authentication
from inference.upstream.client import Upstream
from inference.upstream.errors import AttemptFailed

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
AWS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalr-secret", "AWS_REGION": "eu-west-1"}
TOKEN = "ya29.token-of-google"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Find no credentials but those of the test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    for name in (*AWS, "AWS_PROFILE", "AWS_DEFAULT_REGION", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    caches = (authentication._google, authentication._amazon, authentication.missing_library)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def route(fake: FakeUpstream, style: str) -> Route:
    """Return a route to the fake provider."""
    fake.reset()
    made = Route(1, "p/m", "p", fake.base_url, "", (), "m", "max_tokens", 0, 1, Rates(), signed_as=style)
    return replace(made, base_url=fake.base_url)


class TokenServer(ThreadingHTTPServer):
    """Google's token endpoint: counts what it is asked, and can fail."""

    asked = 0
    fails = False
    lasts = 3600


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    """Run a token endpoint, and name a service account's file that points to it."""

    class Handler(BaseHTTPRequestHandler):
        server: TokenServer

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked += 1
            answer = {"access_token": f"{TOKEN}-{self.server.asked}", "expires_in": self.server.lasts}
            body = json.dumps({"error": "invalid_grant"} if self.server.fails else answer).encode()
            self.send_response(400 if self.server.fails else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in the base class)
            """Say nothing."""

    key = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with TokenServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        account = {
            "type": "service_account",
            "client_email": "gateway@project.iam.example",
            "private_key": key.decode(),
            "token_uri": f"http://127.0.0.1:{server.server_port}/token",
            "project_id": "project",
        }
        path = tmp_path / "account.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield server
        server.shutdown()


def test_google_s_token_is_renewed_when_it_ends(fake: FakeUpstream, tokens: TokenServer) -> None:
    client, to = Upstream(), route(fake, "vertex")
    for _ in range(3):
        client.call(to, "/chat/completions", CHAT, seconds=5)
    assert [each.headers["authorization"] for each in fake.requests] == [f"Bearer {TOKEN}-1"] * 3
    tokens.lasts = 1  # which is over at once, for google-auth renews some minutes before
    authentication._google.cache_clear()
    for _ in range(2):
        client.call(to, "/chat/completions", CHAT, seconds=5)
    assert [each.headers["authorization"] for each in fake.requests[3:]] == [f"Bearer {TOKEN}-2", f"Bearer {TOKEN}-3"]


def test_one_call_renews_the_token_for_all(fake: FakeUpstream, tokens: TokenServer) -> None:
    to = route(fake, "vertex")
    client = Upstream()
    calls = [
        threading.Thread(target=client.call, args=(to, "/chat/completions", CHAT), kwargs={"seconds": 5})
        for _ in range(8)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert tokens.asked == 1
    assert len(fake.billed) == 8


def signature(request: Any, path: str, service: str) -> str:
    """Compute AWS's signature (version 4) of a request that the fake provider received."""
    headers = request.headers
    fields = dict(part.split("=", 1) for part in headers["authorization"].split(" ", 1)[1].split(", "))
    names = fields["SignedHeaders"].split(";")
    digest = hashlib.sha256(to_json(request.body)).hexdigest()
    assert headers["x-amz-content-sha256"] == digest
    canonical = ["POST", path, "", *(f"{name}:{' '.join(headers[name].split())}" for name in names), ""]
    canonical += [fields["SignedHeaders"], digest]
    stamp = str(headers["x-amz-date"])
    scope = f"{stamp[:8]}/eu-west-1/{service}/aws4_request"
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    key = b"AWS4" + AWS["AWS_SECRET_ACCESS_KEY"].encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}"
    assert fields["Credential"] == f"{AWS['AWS_ACCESS_KEY_ID']}/{scope}"
    assert fields["Signature"] == hmac.new(key, text.encode(), "sha256").hexdigest()
    return stamp


def test_amazon_s_signature_covers_each_call(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    client, to = Upstream(), route(fake, "bedrock")
    client.call(to, "/chat/completions", CHAT, seconds=5)
    stream = client.open_stream(
        to, "/chat/completions", {**CHAT, "stream": True}, seconds=5, opens=lambda event: "choices" in event
    )
    assert b"[DONE]" in stream.first + b"".join(stream)
    for request in fake.requests:
        stamp = signature(request, "/v1/chat/completions", "bedrock-mantle")
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - signed_at).total_seconds()) < 60
        assert AWS["AWS_SECRET_ACCESS_KEY"] not in str(request.headers)


@pytest.mark.parametrize(
    ("host", "region", "service"),
    [
        ("bedrock-runtime.us-west-2.amazonaws.com", "us-west-2", "bedrock"),
        ("bedrock-mantle.eu-central-1.api.aws", "eu-central-1", "bedrock-mantle"),
    ],
)
def test_the_host_names_region_and_service(host: str, region: str, service: str) -> None:
    url = f"https://{host}/openai/v1/chat/completions"
    assert (authentication._region_of(url), authentication._service_of(url)) == (region, service)


def failure(fake: FakeUpstream, style: str) -> AttemptFailed:
    """Return how a call fails that can't be authenticated; nothing is sent."""
    with pytest.raises(AttemptFailed) as failed:
        Upstream().call(route(fake, style), "/chat/completions", CHAT, seconds=5)
    assert fake.requests == []
    assert (failed.value.error.status, failed.value.verdict.may_be_billed) == (502, False)
    return failed.value


def test_operators_read_what_is_missing(
    fake: FakeUpstream, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    tokens.fails = True
    assert failure(fake, "vertex").cause == "no credentials: RefreshError"
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    authentication._google.cache_clear()
    assert failure(fake, "vertex").cause == "no credentials: DefaultCredentialsError"
    assert failure(fake, "bedrock").cause == "no region: set AWS_REGION"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert failure(fake, "bedrock").cause.startswith("no credentials")
    monkeypatch.setattr(authentication, "find_spec", lambda name: None)
    authentication.missing_library.cache_clear()
    for style, module in authentication.NEEDED.items():
        told = f"{module} is not installed: pip install -r requirements-clouds.txt"
        assert failure(fake, style).cause == told
        assert provider_models(Provider(style=style)).trouble.startswith(told)
    assert "invalid_grant" not in str(log_lines())


@pytest.mark.parametrize("style", ["vertex", "bedrock"])
def test_a_style_with_its_own_credentials_takes_no_secret(style: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Provider(name="p", style=style, base_url="https://a.example.com/v1", api_key_variable="A_API_KEY").clean()
    assert "api_key_variable" in refused.value.message_dict


def test_presets_have_the_fields_of_their_style() -> None:
    for name in ("gemini", "vertex", "bedrock", "anthropic"):
        initial = PRESETS[name].initial
        url = initial["base_url"].replace("LOCATION", "eu").replace("PROJECT", "p").replace("REGION", "eu-west-1")
        provider = Provider(**{**initial, "base_url": url})
        provider.clean()
        assert bool(provider.api_key_variable) == (name != "vertex")
