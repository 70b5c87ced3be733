"""Embeddings: the form that was asked for, whatever the provider gives, and only answers that fit the question."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import openai
import pytest

from tests.npm import npm_install, run_node
from tests.running import (
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    running_platform,
    scripted_provider,
    wait_until,
)

MODEL, SPARED = "embedder", "spared"
PATH = "/v1/embeddings"
#: Numbers that float32 holds exactly, so that both forms are the same.
ONE, TWO = [0.5, -0.25, 1.0, 0.0], [2.0, 3.5, -1.0, 0.125]
NUMBERS = count(1)
USAGE = {"prompt_tokens": 7, "total_tokens": 7}


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider."""
    with scripted_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def spare() -> Iterator[ScriptedProvider]:
    """Run the provider of a second deployment."""
    with scripted_provider() as provider:
        provider.script(SPARED, reply(ONE))
        yield provider


@pytest.fixture(scope="module")
def platform(
    provider: ScriptedProvider, spare: ScriptedProvider, prepared: Callable[[], dict[str, str]]
) -> Iterator[Platform]:
    """Run the platform before them."""
    served = [
        Served(MODEL, [provider.base_url], kind="embedding"),
        Served(SPARED, [provider.base_url, spare.base_url], kind="embedding"),
    ]
    with running_platform(prepared(), served) as platform:
        yield platform


def encoded(numbers: Sequence[float]) -> str:
    """Write numbers as OpenAI does: float32, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def reply(*vectors: Any, **more: Any) -> Reply:
    """Make the reply with these vectors, in this order."""
    return items(*({"object": "embedding", "index": n, "embedding": each} for n, each in enumerate(vectors)), **more)


def items(*data: Any, **more: Any) -> Reply:
    """Make the reply with these items."""
    body = {"object": "list", "model": "upstream", "data": list(data), "usage": USAGE, **more}
    return Reply(body=json.dumps(body).encode())


def asked(inputs: Any = None, *, model: str = MODEL, **more: Any) -> dict[str, Any]:
    """Make a body with an input that nobody has asked for before, or with these."""
    return {"model": model, "input": f"text {next(NUMBERS)}" if inputs is None else inputs, **more}


def vectors(answer: Any) -> list[Any]:
    """Return the vectors of a good answer, whose indexes count."""
    assert answer.status == 200, answer.body
    data = answer.json()["data"]
    assert [(each["object"], each["index"]) for each in data] == [("embedding", n) for n in range(len(data))]
    return [each["embedding"] for each in data]


def in_form(form: str | None, *each: Sequence[float]) -> list[Any]:
    """Write vectors in a form."""
    return [encoded(vector) if form == "base64" else list(vector) for vector in each]


def form_of(form: str | None) -> dict[str, Any]:
    """Return the parameter that asks for a form; "": none, None: null."""
    return {} if form == "" else {"encoding_format": form}


FORMS = ["", None, "float", "base64"]


@pytest.mark.parametrize("wanted", FORMS)
@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_gives_the_form_that_was_asked_for(
    platform: Platform, provider: ScriptedProvider, wanted: str | None, given: str
) -> None:
    provider.script(MODEL, reply(*in_form(given, ONE, TWO)))
    body = asked(["a", f"b{next(NUMBERS)}"], **form_of(wanted))
    answer = platform.ask(PATH, body)
    assert vectors(answer) == in_form(wanted, ONE, TWO)
    assert {**answer.json(), "data": 0} == {"object": "list", "model": "upstream", "data": 0, "usage": USAGE}
    assert provider.calls[-1].payload == body
    record = platform.record(answer)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (7, 0, "provider")


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_gives_the_form_that_was_asked_for_from_the_cache_too(
    platform: Platform, provider: ScriptedProvider, first: str | None, given: str
) -> None:
    """An answer serves both forms: the second call goes nowhere."""
    provider.script(MODEL, reply(*in_form(given, ONE)), Reply(500))
    body = asked()
    assert platform.ask(PATH, {**body, **form_of(first)}).headers["x-cache"] == "MISS"
    for form in FORMS:
        answer = platform.ask(PATH, {**body, **form_of(form)})
        assert answer.headers["x-cache"] == "HIT"
        assert vectors(answer) == in_form(form, ONE)


def test_it_gives_each_of_those_who_ask_at_once_his_form(platform: Platform, provider: ScriptedProvider) -> None:
    body = reply(ONE).body
    assert isinstance(body, bytes)
    slow = Reply(headers={"Content-Type": "application/json"}, body=[b" ", 1.5, body])
    provider.script(MODEL, slow, Reply(500))
    question, before = asked(), len(provider.calls)
    with ThreadPoolExecutor(len(FORMS)) as pool:
        first = pool.submit(platform.ask, PATH, {**question, **form_of("base64")})
        wait_until(lambda: len(provider.calls) > before, "the call")
        others = [pool.submit(platform.ask, PATH, {**question, **form_of(form)}) for form in FORMS]
        assert vectors(first.result()) == in_form("base64", ONE)
        for form, other in zip(FORMS, others, strict=True):
            assert vectors(other.result()) == in_form(form, ONE)
            assert other.result().headers["x-cache"] in ("COALESCED", "HIT")


def test_it_replays_the_form_that_was_asked_for(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, reply(ONE), Reply(500))
    body, headers = asked(encoding_format="base64"), {"Idempotency-Key": "form", "Cache-Control": "no-store"}
    first, again = platform.ask(PATH, body, headers=headers), platform.ask(PATH, body, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert vectors(first) == vectors(again) == [encoded(ONE)]


def test_it_rounds_to_float32_only_what_it_has_to_write_so(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, reply([0.1, 1, -7e-3]))
    body = asked()
    assert vectors(platform.ask(PATH, body)) == [[0.1, 1, -7e-3]]
    assert vectors(platform.ask(PATH, {**body, "encoding_format": "base64"})) == [encoded([0.1, 1, -7e-3])]


@pytest.mark.parametrize(("inputs", "number"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)])
def test_it_takes_every_kind_of_input(platform: Platform, provider: ScriptedProvider, inputs: Any, number: int) -> None:
    provider.script(MODEL, reply(*[ONE] * number))
    answer = platform.ask(PATH, asked(inputs, encoding_format="base64"), headers={"Cache-Control": "no-store"})
    assert vectors(answer) == [encoded(ONE)] * number


def test_it_brings_vectors_into_the_order_of_their_inputs(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, items({"index": 1, "embedding": TWO}, {"index": 0, "embedding": ONE, "more": 1}))
    answer = platform.ask(PATH, asked(["a", "order"]))
    assert vectors(answer) == [ONE, TWO]
    assert answer.json()["data"][0]["more"] == 1


def test_it_numbers_vectors_that_have_no_index(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, items({"embedding": ONE}, {"embedding": TWO, "index": None}))
    assert vectors(platform.ask(PATH, asked(["a", "number"]))) == [ONE, TWO]


def test_it_passes_dimensions_on(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script(MODEL, reply(ONE), reply(ONE[:2]))
    body = asked()
    assert vectors(platform.ask(PATH, body)) == [ONE]
    assert vectors(platform.ask(PATH, {**body, "dimensions": 2})) == [ONE[:2]]
    assert provider.calls[-1].payload["dimensions"] == 2


def number(index: Any, embedding: Any) -> dict[str, Any]:
    """Make an item."""
    return {"object": "embedding", "index": index, "embedding": embedding}


INFINITE, NOT_A_NUMBER = encoded([1.0, float("inf")]), encoded([float("nan"), 1.0])
#: Answers to two inputs that are none.
UNFIT: dict[str, Sequence[Any]] = {
    "too few": [number(0, ONE)],
    "too many": [number(n, ONE) for n in range(3)],
    "null for an item": [number(0, ONE), None],
    "null for a vector": [number(0, ONE), number(1, None)],
    "no vector": [number(0, ONE), {"object": "embedding", "index": 1}],
    "null in a vector": [number(0, ONE), number(1, [0.5, None, 1.0, 0.0])],
    "an empty vector": [number(0, []), number(1, [])],
    "an empty text": [number(0, ""), number(1, "")],
    "texts in a vector": [number(0, ONE), number(1, ["0.5", 1, 1, 1])],
    "booleans in a vector": [number(0, ONE), number(1, [True, False, True, False])],
    "vectors in a vector": [number(0, [ONE]), number(1, [TWO])],
    "an object": [number(0, ONE), number(1, {"float": TWO})],
    "another length": [number(0, ONE), number(1, TWO[:3])],
    "another length in base64": [number(0, encoded(ONE)), number(1, encoded(TWO[:3]))],
    "no base64": [number(0, encoded(ONE)), number(1, "not base64!")],
    "no whole number of float32": [number(0, base64.b64encode(b"12345").decode()), number(1, encoded(ONE))],
    "infinity": [number(0, INFINITE), number(1, INFINITE)],
    "no number": [number(0, NOT_A_NUMBER), number(1, NOT_A_NUMBER)],
    "too large for float32": [number(0, [1e39, 1.0]), number(1, [1.0, 1.0])],
    "far too large": [number(0, [10**400, 1.0]), number(1, [1.0, 1.0])],
    "an index twice": [number(0, ONE), number(0, TWO)],
    "an index beyond": [number(1, ONE), number(2, TWO)],
    "an index missing": [number(0, ONE), {"embedding": TWO}],
    "an index that is a text": [number("0", ONE), number("1", TWO)],
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("form", ["", "base64"])
def test_it_takes_what_does_not_fit_the_question_for_a_provider_s_failure(
    platform: Platform, provider: ScriptedProvider, name: str, form: str
) -> None:
    """It is billed as the provider says, is not kept, and does not put the deployment aside."""
    provider.script(MODEL, items(*UNFIT[name]), reply(ONE, TWO))
    body = asked(["a", f"b{next(NUMBERS)}"], **form_of(form))
    answer = platform.ask(PATH, body)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    record = platform.record(answer)
    assert (record.status, record.usage_source, record.input_tokens) == (502, "provider", 7)
    assert vectors(platform.ask(PATH, body)) == in_form(form, ONE, TWO)


@pytest.mark.parametrize("name", ["too many", "null in a vector", "an index twice"])
def test_it_asks_the_next_deployment_then(platform: Platform, provider: ScriptedProvider, name: str) -> None:
    provider.script(SPARED, items(*UNFIT[name]))
    answer = platform.ask(PATH, asked(["only one"], model=SPARED, encoding_format="base64", user=name))
    assert vectors(answer) == [encoded(ONE)]
    record = platform.record(answer)
    assert (record.status, record.attempts, record.input_tokens) == (200, 2, 14)


@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_takes_vectors_of_another_length_than_was_asked_for_for_a_failure(
    platform: Platform, provider: ScriptedProvider, given: str
) -> None:
    provider.script(MODEL, reply(*in_form(given, ONE)))
    answer = platform.ask(PATH, asked(dimensions=2))
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


OWN_NUMBERS: list[tuple[dict[str, Any], Any]] = [
    ({"output_dtype": "int8"}, [-128, 127]),
    ({"output_dtype": "int8", "encoding_format": "base64"}, base64.b64encode(b"\x80\x7f\x01").decode()),
    ({"embed_dtype": "float16", "encoding_format": "base64"}, base64.b64encode(b"\xff\xff\xff\xff").decode()),
]


@pytest.mark.parametrize(("more", "vector"), OWN_NUMBERS)
def test_it_looks_into_no_numbers_of_another_kind(
    platform: Platform, provider: ScriptedProvider, more: Mapping[str, Any], vector: Any
) -> None:
    """Those of a server's own parameters pass as they are, and never in the wrong form."""
    provider.script(MODEL, reply(vector))
    body = asked(**more)
    assert vectors(platform.ask(PATH, body)) == [vector]
    other = "float" if more.get("encoding_format") else "base64"
    answer = platform.ask(PATH, {**body, "encoding_format": other})
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


def test_it_refuses_a_form_that_it_does_not_know(platform: Platform) -> None:
    answer = platform.ask(PATH, asked(encoding_format="bytes"))
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "encoding_format", "invalid_value")


#: What the official clients hand to their callers, by the form that they ask for ("" is their own: base64).
CLIENT_FORMS = ["", "float", "base64"]


@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_serves_the_official_python_client(platform: Platform, provider: ScriptedProvider, given: str) -> None:
    inputs = ["a", f"b{next(NUMBERS)}"]
    provider.script(MODEL, reply(*in_form(given, ONE, TWO)), Reply(500))
    with openai.OpenAI(base_url=f"{platform.service.base_url}/v1", api_key=platform.key, max_retries=0) as client:
        for form in CLIENT_FORMS:
            more: Any = form_of(form)
            made = client.embeddings.create(model=MODEL, input=inputs, **more)
            assert [each.embedding for each in made.data] == in_form(form, ONE, TWO)
        provider.script(MODEL, reply(*in_form(given, ONE[:2])))
        small = client.embeddings.create(model=MODEL, input=inputs[1], dimensions=2)
        assert small.data[0].embedding == ONE[:2]
        with pytest.raises(openai.InternalServerError) as failed:
            client.embeddings.create(model=MODEL, input="three", dimensions=3)
        assert failed.value.status_code == 502


@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_serves_the_official_node_client(platform: Platform, provider: ScriptedProvider, given: str) -> None:
    folder = npm_install("node")
    text = f"node {next(NUMBERS)}"
    provider.script(MODEL, reply(*in_form(given, ONE, TWO)))
    arguments = ["embeddings.mjs", f"{platform.service.base_url}/v1", platform.key, MODEL, text]
    done = run_node("node", arguments, folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {form or "own": in_form(form, ONE, TWO) for form in CLIENT_FORMS}
