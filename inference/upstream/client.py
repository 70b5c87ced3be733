"""One call to one deployment, over the process's connection pool.

URL and headers are built once for each endpoint of a deployment, those of Azure by the `openai` SDK. The SDK makes no
call: its HTTP client costs as much CPU as the rest of a request (bench/side_by_side.py). Nothing is retried here: a
retry must fit the caller's deadline and reservation (see routing).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from django.conf import settings
from django.utils.datastructures import CaseInsensitiveMapping
from django.utils.encoding import iri_to_uri

from core.background import yield_to_others
from core.json import parse_strictly, to_json
from core.telemetry.trace import passed_on
from inference.catalog import Route
from inference.protocols.events import BrokenStream, read_opening
from inference.protocols.translation import DAMAGED
from inference.upstream.authentication import signed_headers
from inference.upstream.errors import ATTEMPT_EXCEPTIONS, AttemptFailed, ErrorAnswer, failed_attempt
from inference.upstream.transport import Abort, PooledTransport, Response

if TYPE_CHECKING:
    from openai import OpenAI

#: Headers that no provider's settings and no SDK may set: they belong to the connection or the body, or ask for
#: compression.
OWN_HEADERS = frozenset({"accept-encoding", "connection", "content-length", "host", "x-stainless-read-timeout"})
KEPT_ENDPOINTS = 1000
#: How much the latest call counts in the mean of a deployment's times.
LATEST = 0.2
#: Paths under a deployment's URL for Azure's dated API versions.
DEPLOYMENT_PATHS = frozenset({"/chat/completions", "/completions", "/embeddings"})
#: Turns the events of one endpoint into another's.
Translate = Callable[[Iterator[bytes]], Iterator[bytes]]
NO_HEADERS: Mapping[str, str] = {}
#: The version of Anthropic's API, which every request must name.
ANTHROPIC_VERSION = {"anthropic-version": "2023-06-01"}
#: Header of every request: compression costs more time than it saves between servers, and it delays streams.
UNCOMPRESSED = {"accept-encoding": "identity"}
#: Most bytes read of an error's body, and most seconds to read it: the status is what matters.
LARGEST_ERROR, ERROR_SECONDS = 64 * 1024, 2.0


def read_object(content: bytes) -> dict[str, Any]:
    """Parse a provider's JSON object; a lone surrogate in it becomes U+FFFD.

    Raises ValueError for anything else, RecursionError for too deep nesting.
    """
    answer = parse_strictly(content)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    if b"\\ud" in content.lower():
        text = json.dumps(answer, ensure_ascii=False)
        replaced: dict[str, Any] = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return replaced
    return answer


class UpstreamStream:
    """An open stream of one deployment: the bytes up to its first event in `first`, further bytes by iteration.

    `opens` returns whether the first event belongs to the endpoint, `translate` another endpoint's events of the same
    answer. `close` may be called from another thread or greenlet, and ends a read in progress.
    """

    def __init__(
        self,
        response: Response,
        route: Route,
        opens: Callable[[dict[str, Any]], bool],
        translate: Translate | None = None,
    ) -> None:
        self.route = route
        self._is_closed = False
        #: The open calls by deployment, of which this is one; None if it was never counted.
        self.running: Counter[int] | None = None
        self.response = response
        self.is_translated = translate is not None
        self._reads = iter(response)
        try:
            self.first = read_opening(self._reads, opens)  # regardless of Content-Type, which servers often set wrong
            if translate is not None:
                self._reads, self.first = translate(chain([self.first], self._reads)), b""
        except BrokenStream as error:
            self.close()
            raise ValueError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes after `first` as they arrive; raises AttemptFailed if the stream breaks off."""
        try:
            yield from self._reads
        except (*ATTEMPT_EXCEPTIONS, *DAMAGED) as error:
            if not self._is_closed:
                raise failed_attempt(error, self.route) from error

    def close(self) -> None:
        """Close the connection, or return it to its pool if the stream has ended."""
        if self.running is not None and not self._is_closed:
            self.running[self.route.deployment_id] -= 1
        self._is_closed = True
        self.response.close()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The method, URL and headers of an endpoint's calls."""

    method: str
    url: str
    headers: dict[str, str]


class Upstream:
    """Makes calls to providers over one pool of connections."""

    def __init__(self) -> None:
        #: The open calls of this process by deployment.
        self.running: Counter[int] = Counter()
        #: The mean seconds to the first event of a stream or to a whole answer, the latest counting most.
        self._seconds: dict[tuple[int, bool], float] = {}
        self._transport = PooledTransport()
        self._endpoints: dict[tuple[Any, ...], _Prepared] = {}

    def call(
        self,
        route: Route,
        path: str,
        payload: Mapping[str, Any],
        *,
        seconds: float,
        abort: Abort | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> dict[str, Any]:
        """Post a body and return the whole answer, within `seconds`; `abort` may end the wait.

        `payload` has no `model`; `path` begins with a slash. Raises AttemptFailed.
        """
        body = {**payload, "model": route.upstream_name}
        began = time.monotonic()
        self.running[route.deployment_id] += 1
        try:
            with _deadline(seconds):
                response = self._open(route, path, seconds, body, abort=abort, **headers)
                answer = read_object(response.read(settings.MAX_ANSWER_BYTES))
        except ATTEMPT_EXCEPTIONS as error:
            raise failed_attempt(error, route) from error
        finally:
            self.running[route.deployment_id] -= 1
        self._learn(route, time.monotonic() - began, is_stream=False)
        return answer

    def open_stream(
        self,
        route: Route,
        path: str,
        payload: Mapping[str, Any],
        *,
        seconds: float,
        opens: Callable[[dict[str, Any]], bool],
        idle_seconds: float | None = None,
        abort: Abort | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        translate: Translate | None = None,
    ) -> UpstreamStream:
        """Post a body and return the stream of its answer once its first event has arrived.

        `seconds` limits the time to the first event, `idle_seconds` each read after it (None: no limit); `abort` may
        end the wait for the first event. Raises AttemptFailed, also for an empty answer, for one that is no stream of
        events, and if `opens` rejects the first event.
        """
        body, abort = {**payload, "model": route.upstream_name}, abort or Abort()
        began = time.monotonic()
        self.running[route.deployment_id] += 1
        stream: UpstreamStream | None = None
        try:
            with _deadline(seconds):
                accept = {"accept": "text/event-stream"}
                response = self._open(route, path, seconds, body, abort=abort, **accept, **headers)
                stream = UpstreamStream(response, route, opens, translate)
            abort.limit(idle_seconds)
        except ATTEMPT_EXCEPTIONS as error:
            raise failed_attempt(error, route) from error
        finally:
            if stream is None:
                self.running[route.deployment_id] -= 1
        stream.running = self.running
        self._learn(route, time.monotonic() - began, is_stream=True)
        return stream

    def seconds(self, route: Route, *, is_stream: bool) -> float:
        """Return how long a deployment took lately to the first event or to a whole answer; 0 if nobody knows."""
        return self._seconds.get((route.deployment_id, is_stream), 0.0)

    def _learn(self, route: Route, seconds: float, *, is_stream: bool) -> None:
        key = route.deployment_id, is_stream
        before = self._seconds.get(key, seconds)
        self._seconds[key] = before + LATEST * (seconds - before)

    def reaches(self, route: Route, seconds: float) -> bool:
        """Return whether a connection to the route's address can be made; no request is sent."""
        return self._transport.reaches(route.base_url, seconds, is_guarded=route.is_guarded)

    def list_models(self, route: Route, *, seconds: float) -> AttemptFailed | None:
        """Ask the provider for its models and return the failure, judged as that of a call; None if it answers."""
        try:
            self._list(route, seconds)
        except ATTEMPT_EXCEPTIONS as error:
            return failed_attempt(error, route)
        return None

    def models(self, route: Route, *, seconds: float) -> list[dict[str, Any]]:
        """Return the provider's models as it describes them; raises AttemptFailed."""
        try:
            found = read_object(self._list(route, seconds)).get("data")
        except ATTEMPT_EXCEPTIONS as error:
            raise failed_attempt(error, route) from error
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    def _list(self, route: Route, seconds: float) -> bytes:
        with _deadline(seconds):
            path = "/models?limit=1000" if route.is_anthropic else "/models"  # by default, Anthropic lists 20
            return self._open(route, path, seconds).read(settings.MAX_ANSWER_BYTES)

    def _open(
        self,
        route: Route,
        path: str,
        seconds: float,
        body: dict[str, Any] | None = None,
        *,
        abort: Abort | None = None,
        **headers: str,
    ) -> Response:
        """Post a body (None: get) over the pool, and return the response once its headers have arrived.

        Raises ErrorAnswer for an error status, with as much of its body as can be read.
        """
        prepared, content = self._prepared(route, path, "post" if body is not None else "get"), None
        if body is not None:
            content = to_json(body)
            yield_to_others(len(content))
        sent = {**prepared.headers, **UNCOMPRESSED, **headers, **passed_on()}
        if route.signed_as:
            sent = signed_headers(route.signed_as, prepared.method, prepared.url, sent, content)
        response = self._transport.open(
            prepared.method,
            prepared.url,
            sent,
            content,
            connect=min(seconds, settings.UPSTREAM_CONNECT_TIMEOUT),
            read=seconds,
            is_guarded=route.is_guarded,
            abort=abort,
        )
        if 200 <= response.status < 300:
            return response
        detail = b""
        with suppress(TimeoutError), _deadline(ERROR_SECONDS):
            detail = response.read_until(LARGEST_ERROR)
        raise ErrorAnswer(response.status, CaseInsensitiveMapping(response.headers), detail)

    def _prepared(self, route: Route, path: str, method: str = "post") -> _Prepared:
        """Return an endpoint's URL and headers, cached until something in them changes."""
        path = _path(route, path)
        style = (route.is_azure, route.is_anthropic, route.api_version)
        key = (method, path, style, route.base_url, route.secret, *route.headers.items())
        prepared = self._endpoints.get(key)
        if prepared is None:
            url, headers = (_for_azure if route.is_azure else _for_openai)(route, method, path)
            own = {name: text for name, text in headers.items() if name not in OWN_HEADERS}
            if len(self._endpoints) >= KEPT_ENDPOINTS:
                self._endpoints.clear()
            prepared = self._endpoints[key] = _Prepared(method.upper(), url, own)
        return prepared


upstream = Upstream()


@cache
def sdk() -> Any:
    """Return the module `openai`.

    The import takes half a second and 20 MB, so only Azure's callers pay for it. A web worker imports it before its
    first request if the catalog has such a provider (aiapi.worker).
    """
    import openai

    return openai


def _for_openai(route: Route, method: str, path: str) -> tuple[str, Mapping[str, str]]:
    """Return URL and headers for a provider like OpenAI or Anthropic; without a secret there is no authentication."""
    parts = urlsplit(route.base_url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path = iri_to_uri(parts.path.rstrip("/")) + path
    headers = {"accept": "application/json", "user-agent": "AI-API"}
    if method == "post":
        headers["content-type"] = "application/json"
    if route.is_anthropic:
        headers |= ANTHROPIC_VERSION | ({"x-api-key": route.secret} if route.secret else {})
    elif route.secret:
        headers["authorization"] = f"Bearer {route.secret}"
    return urlunsplit(parts._replace(netloc=host, path=path)), headers | {
        name.lower(): text for name, text in route.headers.items()
    }


def _for_azure(route: Route, method: str, path: str) -> tuple[str, Mapping[str, str]]:
    """Return what the SDK would send to an endpoint of Azure: the URL with its API version, and the authentication."""
    import httpx2
    from openai._models import FinalRequestOptions

    # The SDK requires a secret, which Azure gets in another header. It sends nothing itself.
    http = httpx2.Client(transport=httpx2.BaseTransport(), trust_env=False)
    maker: OpenAI = sdk().OpenAI(base_url=route.base_url, api_key="none", http_client=http, max_retries=0)
    options: dict[str, Any] = {"headers": route.headers | {"api-key": route.secret, "Authorization": sdk().Omit()}}
    if not (_is_azure_v1_url(route) and _is_dated(route.api_version)):  # the v1 API has no dated versions
        options["params"] = {"api-version": route.api_version}
    if method == "post":
        options["json_data"] = {}
    request = maker._build_request(FinalRequestOptions.construct(method=method, url=path, **options))
    return str(request.url), request.headers


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Limit the duration of a whole call. Only under gevent: other servers have the socket's timeouts alone."""
    from gevent import Timeout, monkey

    if not monkey.is_module_patched("socket"):
        yield
        return
    with Timeout(seconds, TimeoutError("deadline")):
        yield


def _path(route: Route, path: str) -> str:
    """Return the path of a call below the base URL.

    Azure's older endpoints have paths for each deployment, which name the model; for its other endpoints the body names
    it (openai.lib.azure). Azure's v1 API has OpenAI's paths.
    """
    if not route.is_azure or _is_azure_v1_url(route):
        return path
    if not _is_dated(route.api_version):
        return f"/openai/v1{path}"
    return (
        f"/openai/deployments/{quote(route.upstream_name, safe='')}{path}"
        if path in DEPLOYMENT_PATHS
        else f"/openai{path}"
    )


def _is_azure_v1_url(route: Route) -> bool:
    return route.base_url.rstrip("/").endswith("/openai/v1")


def _is_dated(version: str) -> bool:
    """Return whether an API version is a date, such as 2024-10-21; those of the v1 API are `v1` and `preview`."""
    return version[:1].isdigit()
