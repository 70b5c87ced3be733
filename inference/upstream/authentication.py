"""Credentials of the clouds whose requests carry more than a fixed secret: Google's tokens and Amazon's signatures.

Each needs a library of its own (requirements-clouds.txt), which is imported at the first call of such a provider. Both
find their credentials as all of Google's and Amazon's tools do: in variables, in files, or from the machine. Tokens are
renewed by the library before they expire.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from inference.models import Provider

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: The packages that each style needs, by their modules.
NEEDED: dict[str, str] = {Provider.Style.VERTEX: "google.auth", Provider.Style.BEDROCK: "botocore"}

_LOCK = threading.Lock()


class NoCredentials(Exception):
    """A call can't be authenticated; the text says why, for operators, and holds no secret."""


@cache
def missing_library(style: str) -> str:
    """Return what to install for a provider's style; empty if nothing is missing."""
    module = NEEDED.get(style, "")
    if not module or (find_spec(module.partition(".")[0]) and find_spec(module)):
        return ""
    return f"{module} is not installed: pip install -r requirements-clouds.txt"


def signed_headers(style: str, method: str, url: str, headers: Mapping[str, str], content: bytes | None) -> Any:
    """Return a request's headers with its credentials; raises NoCredentials."""
    if missing := missing_library(style):
        raise NoCredentials(missing)
    try:
        if style == Provider.Style.VERTEX:
            return {**headers, "authorization": f"Bearer {_google_token()}"}
        return _amazon(_region_of(url), _service_of(url)).sign(method=method, url=url, headers=headers, body=content)
    except (TimeoutError, NoCredentials):
        raise
    except Exception as error:  # the libraries have many kinds; their texts may quote a response
        raise NoCredentials(f"no credentials: {type(error).__name__}") from error


def _google_token() -> str:
    """Return a token that is valid for some minutes, of this process's only credentials; one call renews it for all."""
    with _LOCK:
        credentials, request = _google()
        if not credentials.valid:
            credentials.refresh(request)
        return str(credentials.token)


@cache
def _google() -> tuple[Any, Any]:
    """Return the application default credentials, and what they are renewed by."""
    import google.auth
    from google.auth.transport.requests import Request

    return google.auth.default(scopes=[SCOPE])[0], Request()


@cache
def _amazon(region: str, service: str) -> Any:
    """Return the SDK's signer for a region, with the default chain of credentials."""
    from openai.lib._bedrock_auth import BedrockAwsAuth, BedrockAwsAuthConfig

    return BedrockAwsAuth(BedrockAwsAuthConfig(region=region, source="default", service=service))  # type: ignore[arg-type]


def _region_of(url: str) -> str:
    """Return the region in a host's name such as bedrock-runtime.eu-west-1.amazonaws.com, or AWS_REGION."""
    labels = (urlsplit(url).hostname or "").split(".")
    if labels[0].startswith("bedrock-") and len(labels) > 1:
        return labels[1]
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise NoCredentials("no region: set AWS_REGION")
    return region


def _service_of(url: str) -> str:
    return "bedrock" if (urlsplit(url).hostname or "").startswith("bedrock-runtime") else "bedrock-mantle"
