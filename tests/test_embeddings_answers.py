"""Embeddings: the form that was asked for, whatever the provider gives, and only answers that fit the question."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.npm import npm_install, run_node
from tests.running import EMBEDDINGS as PATH
from tests.running import Answer, Model, Reply, wait_until

#: Numbers that float32 holds exactly, so that both forms are the same.
ONE, TWO = [0.5, -0.25, 1.0, 0.0], [2.0, 3.5, -1.0, 0.125]
USAGE = {"prompt_tokens": 7, "total_tokens": 7}


def encoded(numbers: Sequence[float]) -> str:
    """Write numbers as OpenAI does: float32, little-endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def reply(*vectors: Any, **more: Any) -> Reply:
    """Make the reply with these vectors, in this order."""
    return items(*({"object": "embedding", "index": n, "embedding": each} for n, each in enumerate(vectors)), **more)


def items(*data: Any, **more: Any) -> Reply:
    body = {"object": "list", "model": "upstream", "data": list(data), "usage": USAGE, **more}
    return Reply(body=json.dumps(body).encode())


@pytest.fixture
def model(make_model: Callable[..., Model]) -> Model:
    return make_model(PATH)


def ask(model: Model, body: Mapping[str, Any], **headers: str) -> Answer:
    return model.platform.ask(PATH, body, headers=headers)


def vectors(answer: Any) -> list[Any]:
    """Return the vectors of a good answer, whose indexes count."""
    assert answer.status == 200, answer.body
    data = answer.json()["data"]
    assert [(each["object"], each["index"]) for each in data] == [("embedding", n) for n in range(len(data))]
    return [each["embedding"] for each in data]


def in_form(form: str | None, *each: Sequence[float]) -> list[Any]:
    return [encoded(vector) if form == "base64" else list(vector) for vector in each]


def form_of(form: str | None) -> dict[str, Any]:
    """Return the parameter that asks for a form; "": none, None: null."""
    return {} if form == "" else {"encoding_format": form}


FORMS = ["", None, "float", "base64"]


@pytest.mark.parametrize("wanted", FORMS)
@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_gives_the_form_that_was_asked_for(model: Model, wanted: str | None, given: str) -> None:
    model.script(reply(*in_form(given, ONE, TWO)))
    body = model.body(PATH, input=["a", "b"], **form_of(wanted))
    answer = ask(model, body)
    assert vectors(answer) == in_form(wanted, ONE, TWO)
    assert {**answer.json(), "data": 0} == {"object": "list", "model": "upstream", "data": 0, "usage": USAGE}
    assert model.calls()[-1].payload == body
    record = model.record(answer)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (7, 0, "provider")


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_gives_the_form_that_was_asked_for_from_the_cache_too(model: Model, first: str | None, given: str) -> None:
    """An answer serves both forms: the second call goes nowhere."""
    model.script(reply(*in_form(given, ONE)), Reply(500))
    body = model.body(PATH)
    assert ask(model, {**body, **form_of(first)}).headers["x-cache"] == "MISS"
    for form in FORMS:
        answer = ask(model, {**body, **form_of(form)})
        assert answer.headers["x-cache"] == "HIT"
        assert vectors(answer) == in_form(form, ONE)


def test_it_gives_each_of_those_who_ask_at_once_his_form(model: Model) -> None:
    body = reply(ONE).body
    assert isinstance(body, bytes)
    slow = Reply(headers={"Content-Type": "application/json"}, body=[b" ", 1.5, body])
    model.script(slow, Reply(500))
    question = model.body(PATH)
    with ThreadPoolExecutor(len(FORMS)) as pool:
        first = pool.submit(ask, model, {**question, **form_of("base64")})
        wait_until(lambda: bool(model.calls()), "the call")
        others = [pool.submit(ask, model, {**question, **form_of(form)}) for form in FORMS]
        assert vectors(first.result()) == in_form("base64", ONE)
        for form, other in zip(FORMS, others, strict=True):
            assert vectors(other.result()) == in_form(form, ONE)
            assert other.result().headers["x-cache"] in ("COALESCED", "HIT")


def test_it_replays_the_form_that_was_asked_for(model: Model) -> None:
    model.script(reply(ONE), Reply(500))
    body, headers = model.body(PATH, encoding_format="base64"), {"Idempotency-Key": "form", "Cache-Control": "no-store"}
    first, again = ask(model, body, **headers), ask(model, body, **headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert vectors(first) == vectors(again) == [encoded(ONE)]


def test_it_rounds_to_float32_only_what_it_has_to_write_so(model: Model) -> None:
    model.script(reply([0.1, 1, -7e-3]))
    body = model.body(PATH)
    assert vectors(ask(model, body)) == [[0.1, 1, -7e-3]]
    assert vectors(ask(model, {**body, "encoding_format": "base64"})) == [encoded([0.1, 1, -7e-3])]


@pytest.mark.parametrize(("inputs", "number"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)])
def test_it_takes_every_kind_of_input(model: Model, inputs: Any, number: int) -> None:
    model.script(reply(*[ONE] * number))
    answer = ask(model, model.body(PATH, input=inputs, encoding_format="base64"))
    assert vectors(answer) == [encoded(ONE)] * number


def test_it_brings_vectors_into_the_order_of_their_inputs(model: Model) -> None:
    model.script(items({"index": 1, "embedding": TWO}, {"index": 0, "embedding": ONE, "more": 1}))
    answer = ask(model, model.body(PATH, input=["a", "order"]))
    assert vectors(answer) == [ONE, TWO]
    assert answer.json()["data"][0]["more"] == 1


def test_it_numbers_vectors_that_have_no_index(model: Model) -> None:
    model.script(items({"embedding": ONE}, {"embedding": TWO, "index": None}))
    assert vectors(ask(model, model.body(PATH, input=["a", "number"]))) == [ONE, TWO]


def test_it_passes_dimensions_on(model: Model) -> None:
    model.script(reply(ONE), reply(ONE[:2]))
    body = model.body(PATH)
    assert vectors(ask(model, body)) == [ONE]
    assert vectors(ask(model, {**body, "dimensions": 2})) == [ONE[:2]]
    assert model.calls()[-1].payload["dimensions"] == 2


def number(index: Any, embedding: Any) -> dict[str, Any]:
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
def test_it_takes_what_does_not_fit_the_question_for_a_provider_s_failure(model: Model, name: str, form: str) -> None:
    """It is billed as the provider says, is not kept, and does not put the deployment aside."""
    model.script(items(*UNFIT[name]), reply(ONE, TWO))
    body = model.body(PATH, input=["a", "b"], **form_of(form))
    answer = ask(model, body)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    record = model.record(answer)
    assert (record.status, record.usage_source, record.input_tokens) == (502, "provider", 7)
    assert vectors(ask(model, body)) == in_form(form, ONE, TWO)


@pytest.mark.parametrize("name", ["too many", "null in a vector", "an index twice"])
def test_it_asks_the_next_deployment_then(make_model: Callable[..., Model], name: str) -> None:
    model = make_model(PATH)
    model.script(items(*UNFIT[name]))
    model.spare.script(model.spared, reply(ONE))
    answer = model.ask(PATH, input=["only one"], encoding_format="base64", spared=True)
    assert vectors(answer) == [encoded(ONE)]
    record = model.record(answer)
    assert (record.status, record.attempts, record.input_tokens) == (200, 2, 14)


@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_takes_vectors_of_another_length_than_was_asked_for_for_a_failure(model: Model, given: str) -> None:
    model.script(reply(*in_form(given, ONE)))
    answer = ask(model, model.body(PATH, dimensions=2))
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


OWN_NUMBERS: list[tuple[dict[str, Any], Any]] = [
    ({"output_dtype": "int8"}, [-128, 127]),
    ({"output_dtype": "int8", "encoding_format": "base64"}, base64.b64encode(b"\x80\x7f\x01").decode()),
    ({"embed_dtype": "float16", "encoding_format": "base64"}, base64.b64encode(b"\xff\xff\xff\xff").decode()),
]


@pytest.mark.parametrize(("more", "vector"), OWN_NUMBERS)
def test_it_looks_into_no_numbers_of_another_kind(model: Model, more: Mapping[str, Any], vector: Any) -> None:
    """Those of a server's own parameters pass as they are, and never in the wrong form."""
    model.script(reply(vector))
    body = model.body(PATH, **more)
    assert vectors(ask(model, body)) == [vector]
    other = "float" if more.get("encoding_format") else "base64"
    answer = ask(model, {**body, "encoding_format": other})
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


def test_it_refuses_a_form_that_it_does_not_know(model: Model) -> None:
    answer = ask(model, model.body(PATH, encoding_format="bytes"))
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "encoding_format", "invalid_value")


#: What the official clients hand to their callers, by the form that they ask for ("" is their own: base64).
CLIENT_FORMS = ["", "float", "base64"]


@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_serves_the_official_python_client(model: Model, given: str) -> None:
    inputs = ["a", "b"]
    model.script(reply(*in_form(given, ONE, TWO)), Reply(500))
    url, key = f"{model.platform.service.base_url}/v1", model.platform.key
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        for form in CLIENT_FORMS:
            more: Any = form_of(form)
            made = client.embeddings.create(model=model.name, input=inputs, **more)
            assert [each.embedding for each in made.data] == in_form(form, ONE, TWO)
        model.script(reply(*in_form(given, ONE[:2])))
        small = client.embeddings.create(model=model.name, input=inputs[1], dimensions=2)
        assert small.data[0].embedding == ONE[:2]
        with pytest.raises(openai.InternalServerError) as failed:
            client.embeddings.create(model=model.name, input="three", dimensions=3)
        assert failed.value.status_code == 502


@pytest.mark.parametrize("given", ["float", "base64"])
def test_it_serves_the_official_node_client(model: Model, given: str) -> None:
    folder = npm_install("node")
    model.script(reply(*in_form(given, ONE, TWO)))
    arguments = ["embeddings.mjs", f"{model.platform.service.base_url}/v1", model.platform.key, model.name, "node"]
    done = run_node("node", arguments, folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {form or "own": in_form(form, ONE, TWO) for form in CLIENT_FORMS}
