"""The SDK's HTTP client over urllib3's connection pool: half the CPU of its own, and a read costs no parsing.

httpx2 lets its transport be replaced; what the SDK adds (URLs, headers, errors) stays as it is. Timeouts are those of
the request's extensions, as httpx2 passes them: connect, read, write and pool, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.util import Timeout

#: Idle connections kept for each provider; more are made when needed, and closed after use.
KEPT_CONNECTIONS = 200
#: Providers (scheme, host and port) whose pools are kept.
KEPT_POOLS = 50
READ_SIZE = 64 * 1024


class PooledTransport(httpx2.BaseTransport):
    """Sends requests over pools that the process's threads or greenlets share."""

    def __init__(self) -> None:
        self._pools = urllib3.PoolManager(num_pools=KEPT_POOLS, maxsize=KEPT_CONNECTIONS, block=False, retries=False)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response as soon as the headers are there."""
        limits = request.extensions.get("timeout", {})
        with _httpx_errors():
            response = self._pools.urlopen(
                request.method,
                str(request.url),
                body=request.read() or None,
                headers=dict(request.headers),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=Timeout(connect=limits.get("connect"), read=limits.get("read")),
            )
        return httpx2.Response(response.status, headers=list(response.headers.items()), stream=_Body(response))

    def close(self) -> None:
        """Close the idle connections."""
        self._pools.clear()


class _Body(httpx2.SyncByteStream):
    """A response's bytes as they arrive. Read to its end, the connection goes back to its pool; else it is closed."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        response: Any = self._response
        with _httpx_errors():
            if response.chunked and response.supports_chunked_reads():
                yield from response.read_chunked(READ_SIZE, decode_content=False)
                return
            while data := response.read1(READ_SIZE, decode_content=False):
                yield data

    def close(self) -> None:
        response: Any = self._response
        if response.closed:
            response.release_conn()
            return
        with suppress(OSError, ValueError, RuntimeError):
            response.shutdown()  # wakes whoever reads from it
        response.close()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Raise urllib3's errors as the httpx2 ones that the SDK and inference.upstream.errors know."""
    try:
        yield
    except (ConnectTimeoutError, NewConnectionError, EmptyPoolError) as error:
        is_timeout = isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError)
        raise (httpx2.ConnectTimeout if is_timeout else httpx2.ConnectError)("not reached") from error
    except (ReadTimeoutError, TimeoutError) as error:
        raise httpx2.ReadTimeout("no answer in time") from error
    except (HTTPError, OSError) as error:
        raise httpx2.ReadError("broken off") from error
