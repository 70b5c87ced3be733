"""The one door for tests of promises: start a platform with scripted providers, ask it, and read what it recorded.

Such a test sees what a caller, an operator or a provider sees, and nothing of the code: HTTP, the admin, the output of
commands, the database. When the code behind changes, this module (and what it imports of tests/) is all that follows.

    with scripted_provider() as provider, running_platform(prepared(), [Served("m", [provider.base_url])]) as platform:
        provider.script("m", Reply(429, {"Retry-After": "7"}, b"{}"), completion("Hello"))
        answer = platform.ask("/v1/chat/completions", chat("m"))
        assert answer.status == 200
        assert platform.record(answer).usage_source == "provider"
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.admin_pages import Admin, AdminPage
from tests.answers import Answer
from tests.catalogue import Record, Served, query_rows, record_of, set_up
from tests.manager import manager
from tests.processes import wait_until
from tests.servers import Service, aiapi_server, clean_environment

__all__ = [
    "CHAT",
    "EMBEDDER",
    "EMBEDDINGS",
    "ENDPOINTS",
    "LARGEST",
    "MESSAGES",
    "MODEL",
    "NO_STORE",
    "SHORT",
    "STREAMING",
    "Admin",
    "AdminPage",
    "Answer",
    "Asked",
    "Model",
    "Platform",
    "Record",
    "Reply",
    "ScriptedProvider",
    "Served",
    "answered",
    "asking",
    "chat",
    "command",
    "completion",
    "event",
    "running_platform",
    "scripted_provider",
    "wait_until",
]


#: The models of the platform that tests share (`platform`), which a test scripts anew.
MODEL, EMBEDDER = "m", "e"
#: Bytes of the longest answer that it takes of a provider, and its seconds.
LARGEST = 1024 * 1024
SHORT = {
    "MAX_ANSWER_BYTES": str(LARGEST),
    "UPSTREAM_TIMEOUT": "8",
    "UPSTREAM_IDLE_TIMEOUT": "2",
    "STREAM_FIRST_BYTE_SECONDS": "3",
    "LIMITS_LEASE_SECONDS": "5",
    "REDIS_TIMEOUT": "2",  # a store that a busy machine makes slow is not away: calls would be refused
}
CHAT, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/embeddings"
#: Endpoints that ask a model, those that stream before the others.
STREAMING = (CHAT, "/v1/completions", "/v1/responses", "/chat", MESSAGES)
ENDPOINTS = (*STREAMING, "/summarize", EMBEDDINGS)
NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True)
class Reply:
    """What a provider answers to one call.

    A body of bytes goes with its length, a list in chunks: bytes are sent, a number is a pause in seconds. With
    `breaks_off` the connection is closed after the body, before its end. `delay`: seconds before anything is sent.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Sequence[bytes | float] = b""
    breaks_off: bool = False
    delay: float = 0.0


@dataclass
class Asked:
    """One call as a provider got it: header names in lower case; `was_left` once the other side hung up in a pause."""

    path: str
    headers: Mapping[str, str]
    payload: dict[str, Any]
    was_left: bool = False


class ScriptedProvider:
    """A provider on a socket of this machine (port 0: a free one) that answers calls of each model by a script."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[Asked] = []
        #: How often its list of models was asked for, and what is answered to that (None: the list).
        self.listings = 0
        self.listing: Reply | None = None
        self._scripts: dict[str, list[Reply]] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        """Return its base URL, which ends in /v1."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def script(self, model: str, *replies: Reply) -> None:
        """Set what the next calls of a model get, one after the other; the last reply is repeated."""
        with self._lock:
            self._scripts[model] = list(replies)

    def calls_of(self, model: str) -> list[Asked]:
        """List the calls of a model, the oldest first."""
        return [call for call in self.calls if call.payload.get("model") == model]

    def reply_to(self, call: Asked) -> Reply:
        """Note a call and return the reply that is its turn; 404 for a model without a script."""
        with self._lock:
            self.calls.append(call)
            replies = self._scripts.get(str(call.payload.get("model")), [Reply(404, body=b"{}")])
            return replies.pop(0) if len(replies) > 1 else replies[0]

    def models(self) -> Reply:
        """Return the list of the models that have a script, or what is answered instead."""
        self.listings += 1
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self._scripts]}
        return self.listing or Reply(body=json.dumps(listed).encode())

    def start(self) -> None:
        """Serve, in threads."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """End, and refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


def _is_left_within(connection: socket.socket, seconds: float) -> bool:
    readable, _, _ = select.select([connection], [], [], seconds)
    return bool(readable) and not connection.recv(1, socket.MSG_PEEK)


def _handler(provider: ScriptedProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(provider.models(), Asked(self.path, {}, {}))

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            call = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, payload)
            with suppress(OSError):
                self._send(provider.reply_to(call), call)

        def _send(self, reply: Reply, call: Asked) -> None:
            if reply.delay and _is_left_within(self.connection, reply.delay):
                call.was_left = self.close_connection = True
                return
            is_plain = isinstance(reply.body, bytes)
            self.send_response(reply.status)
            length = (
                {"Content-Length": str(len(reply.body) + reply.breaks_off)}
                if is_plain
                else {"Transfer-Encoding": "chunked"}
            )
            headers = {"Content-Type": "application/json" if is_plain else "text/event-stream", **length}
            given = {name.lower() for name in reply.headers}
            defaults = {name: value for name, value in headers.items() if name.lower() not in given}
            for name, value in {**defaults, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in [reply.body] if isinstance(reply.body, bytes) else reply.body:
                if isinstance(piece, bytes):
                    self.wfile.write(piece if is_plain else b"%x\r\n%b\r\n" % (len(piece), piece))
                elif _is_left_within(self.connection, piece):
                    call.was_left = True
                    self.close_connection = True
                    return
            if reply.breaks_off:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif not is_plain:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in the base class)
            """Print nothing."""

    return Handler


@contextmanager
def scripted_provider(port: int = 0) -> Iterator[ScriptedProvider]:
    """Run a provider that answers by a script."""
    provider = ScriptedProvider(port)
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()


@dataclass
class Platform:
    """A running platform, and a key without limits but those that were asked for."""

    service: Service
    key: str

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "",
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        leave_after: float | None = None,
    ) -> Answer:
        """Send one request and read all of its answer; a POST where there is a body.

        `leave_after` hangs up after so many seconds without an answer: then the status is 0.
        """
        headers = {"Content-Type": "application/json", "X-Request-ID": uuid.uuid4().hex, **(headers or {})}
        try:
            return self.service.request(
                method or ("GET" if body is None else "POST"),
                path,
                body,
                key=self.key if key is None else key,
                headers=headers,
                timeout=leave_after or 60,
            )
        except TimeoutError:
            if leave_after is None:
                raise
            return Answer(0, {}, b"", headers["X-Request-ID"])

    def record(self, answer: Answer) -> Record:
        """Wait for the record of a request, and return it."""
        return record_of(self.service, answer.label)

    def add(self, served: Sequence[Served], *, account: str, **tier: Any) -> str:
        """Add models, and an account with a tier of these limits; return a key of it, when every worker knows them."""
        key = set_up(self.service, served, account=account, **tier)
        if served:
            time.sleep(1)  # a worker that has just read its catalog reads it again within a second
        return key

    @contextmanager
    def twin(self, *, workers: int = 1) -> Iterator[Platform]:
        """Run another server on the same stores."""
        env = {name: value for name, value in self.service.env.items() if name not in ("PORT", "WEB_CONCURRENCY")}
        with aiapi_server(env, workers=workers, prepare=False) as service:
            yield Platform(service, self.key)

    def manage(self, *arguments: str) -> str:
        """Run a management command in the platform's environment and return what it printed."""
        return self.service.manage(*arguments)

    @cached_property
    def admin(self) -> Admin:
        """Return the admin, open to an administrator."""
        return Admin(self.service)

    def staff(self, name: str, *permissions: str) -> Admin:
        """Return the admin, open to a new member of staff with permissions such as "auth.change_user"."""
        return Admin(self.service, name, permissions)

    @property
    def log(self) -> str:
        """Return what all its processes have printed."""
        return self.service.log.read_text()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Ask the platform's database."""
        return query_rows(self.service, query)


@dataclass
class Model:
    """A model of the shared platform that no other test asks, since breakers remember; `spared`: one with a spare."""

    platform: Platform
    provider: ScriptedProvider
    spare: ScriptedProvider
    name: str
    spared: str

    def script(self, *replies: Reply) -> None:
        """Set what the provider answers, whether there is a spare or not."""
        for name in (self.name, self.spared):
            self.provider.script(name, *replies)

    def body(self, path: str = CHAT, *, spared: bool = False, **more: Any) -> dict[str, Any]:
        """Make a body that asks an endpoint for a short text."""
        return asking(path, self.spared if spared else self.name, **more)

    def ask(self, path: str = CHAT, *, headers: Any = None, **more: Any) -> Answer:
        """Ask it at an endpoint; with further fields of the body."""
        return self.platform.ask(path, self.body(path, **more), headers=headers)

    def record(self, answer: Answer) -> Record:
        """Wait for the record of a request, and return it."""
        return self.platform.record(answer)

    def calls(self, *, spared: bool = False) -> list[Asked]:
        """List what the provider was asked, without the spare's calls."""
        return self.provider.calls_of(self.spared if spared else self.name)


@contextmanager
def running_platform(
    env: Mapping[str, str], served: Sequence[Served], *, workers: int = 1, **tier: Any
) -> Iterator[Platform]:
    """Run the platform with models and a key whose tier has these limits.

    Its database is one that is prepared, or where `env` names none an SQLite file of its own; without REDIS_URL it has
    a Valkey and a worker of its own.
    """
    # A store that a busy machine makes slow is not away: calls under a budget or an Idempotency-Key would be refused.
    patient = {"REDIS_TIMEOUT": "1", **env}
    with aiapi_server(patient, workers=workers, prepare="DATABASE_URL" not in env) as service:
        yield Platform(service, set_up(service, served, **tier))


def command(env: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Run a management command with nothing but these settings; return its status and what it printed."""
    status, output, errors = manager().run({**clean_environment(), **env}, *arguments)
    return status, output + errors


def chat(model: str, text: str = "hello there", **more: Any) -> dict[str, Any]:
    """Make the body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def asking(path: str, model: str, **more: Any) -> dict[str, Any]:
    """Make a body that asks a model at an endpoint for a short text."""
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": "hello there"}]},
        "/v1/completions": {"prompt": "hello there"},
        "/v1/responses": {"input": "hello there"},
        MESSAGES: {"max_tokens": 100, "messages": [{"role": "user", "content": "hello there"}]},
        EMBEDDINGS: {"input": "hello there"},
        "/chat": {"message": "hello there"},
        "/summarize": {"text": "hello there " * 5},
    }
    return {"model": model, **bodies[path], **more}


def completion(text: str, *, usage: Mapping[str, Any] | None = None, **choice: Any) -> Reply:
    """Make the reply of a sound chat completion; usage is 5/2 unless given."""
    said = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    told = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7} if usage is None else usage
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [said], "usage": told}
    return Reply(body=json.dumps(body).encode())


def answered(
    path: str = CHAT, text: str = "Hello", *, prompt: int = 5, output: int = 2, is_stream: bool = False
) -> Reply:
    """Make what a provider answers at an endpoint, sound and whole: a text, and the tokens that it says it used."""
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    body: dict[str, Any] = {"id": "c", "object": "o", "created": 1, "model": "m", "usage": usage}
    if path == EMBEDDINGS:
        body["data"] = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    elif path == "/v1/responses":
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"type": "message", "id": "i", "role": "assistant", "status": "completed", "content": content}
        used = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
        whole = {"status": "completed", "output": [item], "usage": used}
        body = {"id": "r", "object": "response", "created_at": 1, **whole}
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("response.created", {"response": {"id": "r", "status": "in_progress"}}),
            ("response.output_text.delta", {"delta": text}),
            ("response.completed", {"response": body}),
        ]
        if is_stream:
            parts = enumerate(kinds)
            return Reply(body=[event({"type": kind, "sequence_number": n, **more}, kind) for n, (kind, more) in parts])
    else:
        said = {"role": "assistant", "content": text}
        if is_stream:
            first = {"index": 0, "delta": said, "text": text, "finish_reason": None}
            last = {"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}
            chunks = [{"id": "c", "choices": [first]}, {"id": "c", "choices": [last]}, {"choices": [], "usage": usage}]
            return Reply(body=[event(each) for each in (*chunks, "[DONE]")])
        body["choices"] = [{"index": 0, "message": said, "text": text, "finish_reason": "stop"}]
    return Reply(body=json.dumps(body).encode())


def event(data: Any, name: str = "") -> bytes:
    """Write an event of a stream; a text stays as it is (`[DONE]`)."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()
