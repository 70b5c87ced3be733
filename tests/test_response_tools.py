"""POST /v1/responses passes on the tools that the caller runs, with their calls and outputs, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.running import CHAT, MODEL, Model, Platform, Reply, ScriptedProvider, answered, event


def of(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


FUNCTION = of("function", name="add", parameters=of("object"), strict=False)
CUSTOM = of("custom", name="exec", format=of("text"))
GROUP = of("namespace", name="crm", description="", tools=[FUNCTION, CUSTOM])
LOCAL = of("local", skills=[{"name": "s", "description": "d", "path": "/skills/s"}])
SEARCH = of("tool_search", execution="client", description="d", parameters=of("object"))
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOOLS: list[dict[str, Any]] = [
    FUNCTION,
    CUSTOM,
    GROUP,
    SEARCH,
    of("local_shell"),
    of("shell", environment=LOCAL),
    of("apply_patch"),
    of("computer"),
    of("computer_use_preview", display_width=800, display_height=600, environment="browser"),
]
ITEMS: list[dict[str, Any]] = [
    of("additional_tools", role="developer", tools=TOOLS),
    {"role": "user", "content": "Do it."},
    of("configuration_update", reasoning={"effort": "low"}),
    of("function_call", call_id="c1", name="add", namespace="crm", arguments="{}"),
    of("function_call_output", call_id="c1", output=[of("input_image", image_url=PIXEL)]),
    of("custom_tool_call", call_id="c2", name="exec", namespace="crm", input="1"),
    of("custom_tool_call_output", call_id="c2", output=[of("input_text", text="1")]),
    of("tool_search_call", call_id="c3", execution="client", arguments={"query": "file"}),
    of("tool_search_output", call_id="c3", execution="client", tools=[GROUP], status="completed"),
    of(
        "local_shell_call",
        id="l4",
        call_id="c4",
        status="completed",
        action=of("exec", command=["ls"], env={"FILE": "a", "image": "b"}),
    ),
    of("local_shell_call_output", id="l4", call_id="c4", output="a.txt"),
    of("shell_call", call_id="c5", action={"commands": ["ls"]}, environment=of("local")),
    of(
        "shell_call_output",
        call_id="c5",
        output=[{"stdout": "a.txt", "stderr": "", "outcome": of("exit", exit_code=0)}],
    ),
    of("apply_patch_call", call_id="c6", status="completed", operation=of("update_file", path="a.txt", diff="+b")),
    of("apply_patch_call_output", call_id="c6", status="completed", output="done"),
    of(
        "computer_call",
        id="cc",
        call_id="c7",
        status="completed",
        pending_safety_checks=[],
        actions=[of("click", button="left", x=1, y=2)],
    ),
    of("computer_call_output", call_id="c7", output=of("computer_screenshot", image_url=PIXEL, detail="original")),
    of("agent_message", author="/root", recipient="/root/a", content=[of("input_text", text="a")]),
]
#: What the provider runs, and bills by what nobody can bound.
FOREIGN: list[dict[str, Any]] = [
    of("web_search_preview"),
    of("file_search", vector_store_ids=["vs_1"]),
    of("code_interpreter", container=of("auto")),
    of("image_generation"),
    of("mcp", server_label="s", server_url="https://mcp.example.com"),
    of("programmatic_tool_calling"),
]
NOT_LOCAL: list[tuple[dict[str, Any], str]] = [
    (of("shell"), "environment.type"),
    (of("shell", environment=of("container_auto")), "environment.type"),
    (of("shell", environment=of("container_reference", container_id="c")), "environment.type"),
    (of("shell", environment={"type": "local", "Type": "container_auto"}), "environment.Type"),
    (of("shell", environment=LOCAL, Environment=of("container_auto")), "Environment"),
    (of("tool_search"), "execution"),
    (of("tool_search", execution="server"), "execution"),
    ({**GROUP, "tools": [FUNCTION, of("web_search")]}, "tools[1].type"),
    ({**GROUP, "tools": [GROUP]}, "tools[0].type"),
    ({**GROUP, "tools": ["add"]}, "tools"),
    ({**GROUP, "tools": {}}, "tools"),
    ({**GROUP, "Tools": [of("web_search")]}, "Tools"),
]
OTHER_ITEMS: list[tuple[dict[str, Any], str]] = [
    (of("mcp_call", id="m_1", name="n", server_label="s", arguments="{}"), "type"),
    (of("code_interpreter_call", id="ci_1", container_id="c", code="1"), "type"),
    (of("image_generation_call", id="ig_1", result="AAAA"), "type"),
    (of("compaction_trigger"), "type"),
    (of("item_reference", id="msg_1"), "type"),
    (of("additional_tools", role="developer", tools=[of("mcp")]), "tools[0].type"),
    (of("tool_search_output", call_id="c", tools=[of("web_search")]), "tools[0].type"),
    ({"role": "user", "content": "a", "tools": [of("web_search")]}, "tools[0].type"),
    ({"role": "user", "content": "a", "Tools": [of("web_search")]}, "Tools"),
    (of("tool_search_call", call_id="c", execution="server", arguments={}), "execution"),
    (
        of("shell_call", call_id="c", action={"commands": []}, environment=of("container_reference", container_id="c")),
        "environment.type",
    ),
    (of("shell_call_output", call_id="c", output="text"), "output"),
    (of("shell_call_output", call_id="c", output=[of("input_file", text="a")]), "output[0].type"),
    (of("shell_call_output", call_id="c", output=[{"file_id": "file-1"}]), "output[0].file_id"),
    (of("local_shell_call_output", id="l", output=[of("input_file")]), "output"),
    (of("apply_patch_call_output", call_id="c", output={"file_id": "file-1"}), "output"),
    (of("computer_call_output", call_id="c", output=of("computer_screenshot", file_id="file-1")), "output.file_id"),
    (
        of("computer_call_output", call_id="c", output=of("computer_screenshot", image_url="http://127.0.0.1/a.png")),
        "output.image_url",
    ),
    (of("computer_call_output", call_id="c", output="text"), "output.type"),
    (of("configuration_update", service_tier="priority"), "service_tier"),
    (of("agent_message", content=[of("input_image", image_url=PIXEL)]), "content[0].type"),
]


@pytest.fixture(autouse=True)
def _answer(provider: ScriptedProvider) -> None:
    provider.script(MODEL, answered("/v1/responses"))


def streamed(item: dict[str, Any], *, ends: bool) -> Reply:
    """Make the stream of a response that tells an item and no usage, and breaks off after it unless it `ends`."""
    told = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [item]}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": {**told, "status": "in_progress", "output": []}}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress"}}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        *([("response.completed", {"response": told})] if ends else []),
    ]
    return Reply(body=[event({"type": name, **data}, name) for name, data in events], breaks_off=not ends)


def response(**more: Any) -> dict[str, Any]:
    """Make the body of a request with a short answer."""
    return {"model": MODEL, "input": "hello", "max_output_tokens": 16, **more}


def refused_param(platform: Platform, body: dict[str, Any]) -> str:
    """Return the parameter that a request is refused for."""
    answer = platform.ask("/v1/responses", body)
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    return str(answer.error["param"])


def test_it_passes_on_the_caller_s_tools_and_items_as_they_came(platform: Platform, provider: ScriptedProvider) -> None:
    for sent in (response(tools=TOOLS), response(input=ITEMS)):
        answered = platform.ask("/v1/responses", sent)
        assert answered.status == 200, answered.body
        assert provider.calls[-1].payload == {**sent, "store": False}


@pytest.mark.parametrize("tool", FOREIGN, ids=lambda tool: tool["type"])
def test_it_names_the_tool_that_the_provider_would_run(
    platform: Platform, provider: ScriptedProvider, tool: dict[str, Any]
) -> None:
    before = len(provider.calls)
    for sent, param in (
        (response(tools=[FUNCTION, tool]), "tools[1].type"),
        (response(input=[{"type": "additional_tools", "tools": [tool]}]), "input[0].tools[0].type"),
        (response(tools=[{**GROUP, "tools": [tool]}]), "tools[0].tools[0].type"),
    ):
        answered = platform.ask("/v1/responses", sent)
        assert (answered.status, answered.error["param"], answered.error["code"]) == (400, param, "invalid_value")
        assert f"'{tool['type']}'" in answered.error["message"]
    assert len(provider.calls) == before


def test_it_refuses_tools_that_run_elsewhere(platform: Platform) -> None:
    for tool, param in NOT_LOCAL:
        assert refused_param(platform, response(tools=[tool])) == f"tools[0].{param}"


def test_it_refuses_items_that_lie_elsewhere_or_hold_what_nobody_can_bound(platform: Platform) -> None:
    for item, param in OTHER_ITEMS:
        assert refused_param(platform, response(input=[item])) == f"input[0].{param}"


def test_it_takes_functions_alone_in_chats(platform: Platform) -> None:
    for tool in TOOLS[2:]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "tools": [tool]}
        answered = platform.ask(CHAT, body)
        assert (answered.status, answered.error["param"]) == (400, "tools[0].type")


def test_it_counts_a_screenshot_as_an_image_and_a_tool_as_what_the_provider_writes_for_it(platform: Platform) -> None:
    key = platform.add([], account="narrow-tools", tokens_per_minute=60_000)
    shot = {
        "type": "computer_call_output",
        "call_id": "c",
        "output": {"type": "computer_screenshot", "image_url": PIXEL},
    }
    too_much: list[dict[str, Any]] = [
        response(input=[shot, shot]),
        response(tools=[{"type": "apply_patch"}] * 20),
        response(input=[{"type": "additional_tools", "tools": [{"type": "apply_patch"}] * 20}]),
    ]
    for body in too_much:
        answered = platform.ask("/v1/responses", body, key=key)
        assert (answered.status, answered.error["code"]) == (400, "bound_exceeds_limit"), answered.body
    assert platform.ask("/v1/responses", response(input=[shot]), key=key).status == 200


def test_it_shares_no_answer_to_a_request_whose_input_brings_tools(platform: Platform) -> None:
    plain, brought = [{"role": "user", "content": "hello"}], [{"type": "additional_tools", "tools": [FUNCTION]}]
    for items, caches in ((plain, ["MISS", "HIT"]), (plain + brought, ["BYPASS", "BYPASS"])):
        body = response(input=items, temperature=0)
        assert [platform.ask("/v1/responses", body).headers["x-cache"] for _ in caches] == caches


@pytest.mark.parametrize("ends", [True, False])
def test_it_counts_a_call_of_a_tool_that_comes_in_one_piece(model: Model, ends: bool) -> None:
    command = "echo " + "zanzibar seventeen " * 50
    model.script(streamed(of("local_shell_call", call_id="c", action=of("exec", command=[command])), ends=ends))
    record = model.record(model.ask("/v1/responses", stream=True))
    assert record.usage_source == "estimated"
    assert 100 < record.output_tokens < 400
