"""How the API describes itself: valid OpenAPI 3.1, every endpoint, both ways to send a key, every error."""

from __future__ import annotations

import re
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from aiapi.schema import BODY_ERRORS, ERRORS, KEY_ERRORS, MODEL_ERRORS
from aiapi.tests.test_urls import API_PATHS
from inference.api.native import ChatRequest, SummarizeRequest
from inference.tests.fixtures import Api

#: What serves the documentation is not part of it.
UNDOCUMENTED = {"/docs", "/redoc", "/openapi.json"}
MODEL_PATHS = ("/chat", "/summarize")


@pytest.fixture
def document(api: Api) -> Any:
    """Return the document as a caller without a key gets it."""
    answer = api.get("/openapi.json", key=None)
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("application/vnd.oai.openapi+json") or "json" in answer["Content-Type"]
    return answer.json()


def operations(document: Any) -> list[tuple[str, str, Any]]:
    """Return path, method and description of every operation."""
    return [(path, method, each) for path, item in document["paths"].items() for method, each in item.items()]


def test_it_is_written_once_a_process(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.get("/openapi.json", key=None)
    monkeypatch.setattr(SchemaGenerator, "get_schema", None)
    for accepted in ("application/json", "application/vnd.oai.openapi+json", "text/html"):
        again = api.get("/openapi.json", key=None, headers={"Accept": accepted})
        assert (again.status_code, again.content) == (200, first.content)


def test_it_is_valid_openapi_3_1(document: Any) -> None:
    description = "Production-ready AI API with authentication and rate limiting"
    own = {"title": "AI API", "version": "1.0.0", "description": description, "license": {"name": "MIT"}}
    assert (document["openapi"], document["info"]) == ("3.1.0", own)
    validate_schema(document)  # type: ignore[no-untyped-call]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_it_describes_every_endpoint_under_a_name_of_its_own(document: Any) -> None:
    described = {re.sub(r"\{\w+\}", "1", path) for path in document["paths"]}
    served = {re.sub(r"\(\?P<\w+>[^)]*\)", "1", path) for path in API_PATHS} | {"/"}
    assert described == served - UNDOCUMENTED
    found = operations(document)
    assert all(each["summary"] for _, _, each in found)
    assert len({each["operationId"] for _, _, each in found}) == len(found)


def test_it_offers_both_ways_to_send_a_key_as_alternatives(document: Any) -> None:
    schemes = document["components"]["securitySchemes"]
    assert schemes["ApiKeyHeader"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert schemes["BearerKey"] == {"type": "http", "scheme": "bearer"}
    for path, _, operation in operations(document):
        if path in MODEL_PATHS:
            assert operation["security"] == [{"ApiKeyHeader": []}, {"BearerKey": []}]
        if path == "/" or path.startswith("/health"):
            assert operation.get("security", []) in ([], [{}])


def test_it_tells_of_every_error_in_the_shape_that_it_has(document: Any) -> None:
    for path in MODEL_PATHS:
        responses = document["paths"][path]["post"]["responses"]
        assert {str(status) for status in KEY_ERRORS + BODY_ERRORS + MODEL_ERRORS} | {"200"} == set(responses)
    for path, _, operation in operations(document):
        shape = "OpenAIErrorBody" if path.startswith("/v1") else "ErrorBody"
        if path.startswith("/v1/messages"):
            shape = "AnthropicErrorBody"
        for status, response in operation["responses"].items():
            if int(status) >= 400 and response["description"] == ERRORS.get(int(status)):
                schemas = [content["schema"] for content in response["content"].values()]
                assert schemas == [{"$ref": f"#/components/schemas/{shape}"}]


@pytest.mark.parametrize(("path", "serializer"), [("/chat", ChatRequest), ("/summarize", SummarizeRequest)])
def test_it_gives_examples_that_are_valid(document: Any, path: str, serializer: Any) -> None:
    operation = document["paths"][path]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"].values()
    assert examples
    for example in examples:
        assert serializer(data=example["value"]).is_valid()
    answers = operation["responses"]["200"]["content"]["application/json"]
    schema = {**answers["schema"], "components": document["components"]}
    for example in answers["examples"].values():
        Draft202012Validator(schema).validate(example["value"])


def test_it_tells_the_bounds_of_fields(document: Any) -> None:
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["message"]
    assert chat["additionalProperties"] is False
    message, temperature = chat["properties"]["message"], chat["properties"]["temperature"]
    assert (message["minLength"], message["maxLength"]) == (1, 1000)
    assert (temperature["minimum"], temperature["maximum"], temperature["default"]) == (0, 2, 0.7)
    summarize = document["components"]["schemas"]["SummarizeRequest"]["properties"]
    assert (summarize["text"]["minLength"], summarize["text"]["maxLength"]) == (10, 5000)


def test_it_takes_no_other_format(api: Api) -> None:
    assert api.get("/openapi.json?format=yaml", key=None).status_code == 200
    assert api.post("/chat?format=html", b"{", content_type="application/json").status_code == 400
