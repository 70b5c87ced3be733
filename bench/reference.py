"""The measure of /chat: a small FastAPI service as teams write it first, with everything in one process.

It checks a key, counts requests in the process, keeps answers in a dictionary, and asks the provider by the openai SDK,
which blocks; no database, no limit that processes share, no budget, no record. Its environment: OPENAI_BASE_URL and
OPENAI_API_KEY, and API_KEY, which it accepts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import APIKeyHeader
from openai import OpenAI
from pydantic import BaseModel, Field

REQUESTS_A_MINUTE = 10**6
CACHE_SECONDS = 3600
MODEL = "gpt-3.5-turbo"

logging.basicConfig(level=logging.INFO, filename=os.devnull)
log = logging.getLogger("reference")
provider = OpenAI()
app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
requests: dict[str, deque[float]] = {os.environ["API_KEY"]: deque()}
lock = threading.Lock()
answers: dict[str, tuple[float, str, int]] = {}


class Question(BaseModel):
    """The body of /chat."""

    message: str = Field(min_length=1, max_length=1000)
    temperature: float = Field(default=0.7, ge=0, le=2)


class Answer(BaseModel):
    """What /chat answers."""

    response: str
    tokens_used: int
    cached: bool
    request_id: str


def counted_key(key: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> str:
    """Return the key of a request that is within its limit."""
    if key is None or key not in requests:
        raise HTTPException(401, "Send a valid key in X-API-Key.")
    with lock:
        now, times = time.monotonic(), requests[key]
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= REQUESTS_A_MINUTE:
            raise HTTPException(429, "Too many requests.")
        times.append(now)
    return key


@app.middleware("http")
async def logged(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    """Give a request an id, and log its beginning and its end."""
    request.state.id, began = str(uuid.uuid4()), time.perf_counter()
    log.info("request %s: %s %s", request.state.id, request.method, request.url.path)
    response = await proceed(request)
    took = time.perf_counter() - began
    response.headers["X-Request-ID"], response.headers["X-Process-Time"] = request.state.id, f"{took:.3f}"
    log.info("answer %s: %d in %.3f s", request.state.id, response.status_code, took)
    return response


@app.post("/chat")
async def chat(request: Request, question: Question, key: Annotated[str, Depends(counted_key)]) -> Answer:
    """Answer from the cache, or ask the provider."""
    identity: dict[str, Any] = {"message": question.message, "temperature": question.temperature}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    until, text, tokens = answers.get(name, (0.0, "", 0))
    is_cached = until > time.time()
    if not is_cached:
        messages: Any = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question.message},
        ]
        completion = provider.chat.completions.create(model=MODEL, messages=messages, temperature=question.temperature)
        text, tokens = (
            completion.choices[0].message.content or "",
            completion.usage.total_tokens if completion.usage else 0,
        )
        answers[name] = (time.time() + CACHE_SECONDS, text, tokens)
    return Answer(response=text, tokens_used=tokens, cached=is_cached, request_id=request.state.id)
