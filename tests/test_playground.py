"""The playground in a real browser, against a real server; and its code, run as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import Browser, Page, expect

from inference.fake_provider import FakeUpstream
from tests.catalogue import make
from tests.npm import npm_install, run_node
from tests.pages import Watched, grave_faults, watch
from tests.servers import Service

CHAT = "/v1/chat/completions"
TEXT = 'It\'s a "test"\nof $(quotes) & `ticks`'


@pytest.fixture(scope="module")
def keys(service: Service) -> dict[str, str]:
    """Make a key whom no limit stops, and one with a single request a minute."""
    limits = {"roomy": {"requests_per_minute": 1000}, "spent": {"requests_per_minute": 1}}
    return make(service, [], ("player", {}, limits))[0].plain


@pytest.fixture
def key(keys: dict[str, str]) -> str:
    """Return the key for all tests but those that use a limit up."""
    return keys["roomy"]


@pytest.fixture
def playground(page: Page, service: Service, key: str) -> Watched:
    """Open the playground, and enter the key by the keyboard."""
    watched = watch(page)
    page.goto(f"{service.base_url}/playground/")
    page.click("#options summary")
    page.focus("#key")
    page.keyboard.insert_text(key)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Key accepted")
    page.select_option("#endpoint", "/chat")
    return watched


def test_the_first_screen_has_the_form_and_what_an_answer_cost(page: Page, service: Service, key: str) -> None:
    watched = watch(page)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{service.base_url}/playground/")
    expect(page.locator("#endpoint")).to_be_hidden()
    assert page.input_value("#endpoint") == CHAT
    assert page.input_value("#model") == "gpt-3.5-turbo", "the catalogue is public"
    page.fill("#key", key)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("Key accepted")
    page.click("#send")
    expect(page.locator("#facts")).to_contain_text("$0.0000")
    assert page.evaluate("scrollY") == 0
    for part in ("#text", "#send", "#facts"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    assert not watched.complaints


def test_it_streams_an_answer_and_tells_what_it_cost(
    playground: Watched, service: Service, key: str, fake: FakeUpstream
) -> None:
    page = playground.page
    page.fill("#text", "one two three four five six seven")
    fake.set(first_token_ms=100, chunk_interval_ms=100)
    page.click("#send")
    expect(page.locator("#answer")).to_contain_text("You said")
    assert page.inner_text("#status") == "Answering…"
    assert "seven" not in page.inner_text("#answer")
    below = page.locator("#facts").bounding_box()
    expect(page.locator("#status")).to_contain_text("Answered in")
    after = page.locator("#facts").bounding_box()
    assert below is not None
    assert after is not None
    assert after["y"] == below["y"], "nothing moves while an answer grows"
    fake.set(first_token_ms=0, chunk_interval_ms=0)
    assert page.inner_text("#answer") == "You said: one two three four five six seven"
    facts = page.locator("#facts")
    for told in ("Tokens", "$0.0000", "gpt-3.5-turbo", "MISS", "First token", "Total", "Request id"):
        expect(facts).to_contain_text(told)
    expect(page.locator("#limit-rows")).to_contain_text("x-ratelimit-remaining")
    page.click("#send")
    expect(facts).to_contain_text("HIT")
    assert not playground.complaints
    assert playground.hosts() == {f"127.0.0.1:{service.port}"}
    assert playground.keeps(key) == []
    assert key not in page.inner_text("body")


def test_it_stops_an_answer(playground: Watched, fake: FakeUpstream) -> None:
    page = playground.page
    page.fill("#text", "stop this one")
    fake.set(first_token_ms=10, chunk_interval_ms=1000)
    page.click("#send")
    expect(page.locator("#answer")).to_contain_text("You")
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped after")
    fake.set(first_token_ms=0, chunk_interval_ms=0)
    assert "one" not in page.inner_text("#answer")
    assert page.is_enabled("#send")


@pytest.mark.parametrize("endpoint", ["/summarize", "/v1/chat/completions"])
def test_it_asks_the_other_endpoints(playground: Watched, endpoint: str) -> None:
    page = playground.page
    page.select_option("#endpoint", endpoint)
    page.click("#send")
    expect(page.locator("#status")).to_contain_text("Answered in")
    expect(page.locator("#facts")).to_contain_text("$0.0000")
    assert page.inner_text("#answer")
    assert not playground.complaints


def test_it_shows_what_is_refused_and_when_to_try_again(page: Page, service: Service, keys: dict[str, str]) -> None:
    watched = watch(page)
    spent = keys["spent"]
    page.goto(f"{service.base_url}/playground/")
    page.fill("#key", spent + "x")
    page.click("#use-key")
    expect(page.get_by_role("alert")).to_contain_text("401 invalid_api_key: Invalid API key")
    page.fill("#key", spent)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("Key accepted")
    assert service.request("POST", "/chat", {"message": "Hello!"}, key=spent).status == 200
    page.click("#send")
    alert = page.locator("#failure")
    expect(alert.get_by_role("alert")).to_contain_text("429 rate_limit_exceeded: Rate limit exceeded")
    expect(alert).to_contain_text("requests per minute of this key: 1 of 1 used")
    expect(alert).to_contain_text("Request id")
    expect(alert.get_by_role("timer")).to_contain_text(" s")
    expect(alert.get_by_role("button", name="Send again")).to_be_disabled()
    box = page.locator("#talk")
    assert box.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight") < 2, "the reason is in view"
    assert re.search(r"Request id\s*\w{8}", page.inner_text("#facts"))
    alert.get_by_role("link").click()
    expect(page.locator("#code-rate_limited")).to_be_in_viewport()
    assert grave_faults(page) == []
    assert not watched.complaints
    assert watched.keeps(spent) == []


def test_it_keeps_what_is_typed_while_it_answers(playground: Watched, fake: FakeUpstream) -> None:
    page = playground.page
    fake.set(chunk_interval_ms=50)
    page.fill("#text", "a question of a few words")
    page.click("#send")
    page.fill("#text", "the next one")
    expect(page.locator("#status")).to_contain_text("Answered in")
    expect(page.locator("#text")).to_have_value("the next one")


@pytest.mark.parametrize("endpoint", ["/chat", "/v1/chat/completions"])
def test_it_shows_an_error_in_mid_stream_beside_what_was_written(
    playground: Watched, fake: FakeUpstream, endpoint: str
) -> None:
    page = playground.page
    page.select_option("#endpoint", endpoint)
    page.fill("#text", f"half of this answer to {endpoint} will come")
    fake.fail_next("error_event")
    page.click("#send")
    expect(page.locator("#failure").get_by_role("alert")).to_contain_text("server_error")
    expect(page.locator("#failure")).to_contain_text("Request id")
    assert page.inner_text("#answer").startswith("You said")
    assert page.is_enabled("#send")
    assert not playground.complaints


def test_it_says_what_is_wrong_before_it_sends(playground: Watched) -> None:
    page = playground.page
    sent = len(playground.requests)
    page.fill("#text", " ")
    page.click("#send")
    expect(page.locator("#text-problem")).to_have_text("Write something first.")
    page.fill("#text", "Hello!")
    page.fill("#temperature", "3")
    page.click("#send")
    expect(page.locator("#temperature")).to_be_focused()
    assert len(playground.requests) == sent


def test_it_removes_an_old_error_when_it_refuses_to_send_again(playground: Watched, fake: FakeUpstream) -> None:
    page = playground.page
    page.fill("#text", "this one fails")
    fake.fail_next("error_event")
    page.click("#send")
    expect(page.locator("#failure").get_by_role("alert")).to_contain_text("server_error")
    page.fill("#text", "")
    page.click("#send")
    expect(page.locator("#text-problem")).to_be_visible()
    expect(page.locator("#failure")).to_be_empty()


def test_it_sends_a_conversation_with_its_system_prompt_and_earlier_turns(
    playground: Watched, fake: FakeUpstream
) -> None:
    page = playground.page
    page.select_option("#endpoint", CHAT)
    page.fill("#system", "Be brief.")
    fake.reset()
    for text in ("My name is Ada.", "What is my name?"):
        page.fill("#text", text)
        page.click("#send")
        expect(page.locator("#answer")).to_have_text(f"You said: {text}")
        expect(page.locator("#text")).to_have_value("")
    sent = [received.body["messages"] for received in fake.requests if received.body]
    system, first = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "My name is Ada."}
    answered = {"role": "assistant", "content": "You said: My name is Ada."}
    assert sent == [[system, first], [system, first, answered, {"role": "user", "content": "What is my name?"}]]
    expect(page.locator("#turns")).to_contain_text("You said: My name is Ada.")
    page.click("#clear")
    expect(page.locator("#turns")).to_be_empty()
    expect(page.locator("#text")).to_be_focused()
    assert not playground.complaints


def test_it_shows_markdown_and_runs_nothing_of_it(playground: Watched) -> None:
    page = playground.page
    evil = '<img src=x onerror="window.stolen=1"> [a](javascript:window.stolen=1) <script>window.stolen=1</script>'
    page.select_option("#endpoint", CHAT)
    page.fill(
        "#text", f"ok\n\n{evil}\n\n- **bold**\n- ![i](https://evil.example/i.png)\n\n```python\nprint('<b>')\n```"
    )
    page.click("#send")
    expect(page.locator("#answer .code-block")).to_contain_text("print('<b>')")
    expect(page.locator("#answer li strong")).to_have_text("bold")
    expect(page.locator("#answer")).to_contain_text('<img src=x onerror="window.stolen=1">')
    assert page.locator("#answer").locator("img, script, a[href^='javascript'], b").count() == 0
    assert page.evaluate("window.stolen") is None
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#answer .code-block button").click()
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>')"
    assert grave_faults(page) == []
    assert not playground.complaints


def test_it_asks_two_models_side_by_side(playground: Watched, service: Service) -> None:
    page = playground.page
    name = "gpt-3.5-turbo"
    page.select_option("#model", "")
    page.select_option("#compare", name)
    page.fill("#text", "the same to both")
    page.click("#send")
    for suffix in ("", "-2"):
        expect(page.locator(f"#answer{suffix}")).to_have_text("You said: the same to both")
        expect(page.locator(f"#status{suffix}")).to_contain_text("Answered in")
        expect(page.locator(f"#facts{suffix}")).to_contain_text("Request id")
    left, right = (page.locator(f"#pane{suffix}").bounding_box() for suffix in ("", "-2"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    expect(page.locator("#send")).to_have_text("Send to both")
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.locator("#pane-2")).to_be_hidden()
    expect(page.locator("#send")).to_have_text("Send")
    assert not playground.complaints


def test_it_keeps_a_key_for_the_tab_only_if_asked(page: Page, service: Service, key: str) -> None:
    watched = watch(page)
    page.goto(f"{service.base_url}/playground/")
    page.fill("#key", key)
    page.check("#keep-key")
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("Key accepted")
    for path in ("/playground/", "/account/"):
        page.goto(service.base_url + path)
        expect(page.locator("#status")).to_contain_text("As of" if path == "/account/" else "Key accepted")
    assert watched.keeps(key) == ["storage"]
    other = page.context.new_page()
    other.goto(f"{service.base_url}/playground/")
    assert other.input_value("#key") == ""
    page.goto(f"{service.base_url}/playground/")
    page.uncheck("#keep-key")
    assert watched.keeps(key) == []
    page.check("#keep-key")
    page.fill("#key", "ak_dev_wrong")
    page.click("#use-key")
    expect(page.locator("#key-problem").get_by_role("alert")).to_contain_text("401")
    assert watched.keeps("ak_dev_wrong") == []


def test_it_gives_a_link_with_the_form_and_without_the_key(playground: Watched, service: Service, key: str) -> None:
    page = playground.page
    page.select_option("#endpoint", CHAT)
    page.fill("#text", "a = b & c?")
    page.fill("#temperature", "0.5")
    page.uncheck("#stream")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#link")
    expect(page.locator("#linked")).to_have_text("Copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert key not in link
    other = page.context.new_page()
    other.goto(link)
    assert other.input_value("#text") == "a = b & c?"
    assert (other.input_value("#endpoint"), other.input_value("#temperature")) == (CHAT, "0.5")
    assert not other.is_checked("#stream")
    assert '"model": ""' not in other.inner_text("#code-text").replace('":"', '": "')
    other.fill("#key", key)
    other.click("#use-key")
    expect(other.locator("#model")).to_have_value("gpt-3.5-turbo")


def test_it_works_by_keyboard_alone(page: Page, service: Service, key: str) -> None:
    page.goto(f"{service.base_url}/playground/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    reached: list[str] = []
    while "stop" not in reached and "send" not in reached[-1:]:
        page.keyboard.press("Tab")
        here = page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]")
        assert here[1] != "none", f"no visible focus at {here[0] or page.evaluate('document.activeElement.outerHTML')}"
        reached.append(here[0])
        if here[0] == "key":
            page.keyboard.insert_text(key)
            page.keyboard.press("Enter")
            expect(page.locator("#status")).to_contain_text("Key accepted")
        assert len(reached) < 40, reached
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Answered in")
    page.focus("#tab-curl")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-python")).to_be_focused()
    expect(page.locator("#code-text")).to_contain_text("from openai import OpenAI")
    expect(page.locator("#install")).to_have_text("pip install openai")


@pytest.mark.parametrize(
    ("endpoint", "streams"), [("/chat", True), ("/v1/chat/completions", False), ("/v1/chat/completions", True)]
)
def test_it_gives_code_that_sends_the_same(
    playground: Watched, service: Service, key: str, fake: FakeUpstream, endpoint: str, streams: bool
) -> None:
    page = playground.page
    page.select_option("#endpoint", endpoint)
    page.fill("#text", TEXT)
    page.check("#fresh")
    page.set_checked("#stream", streams)
    code = {}
    for language in ("curl", "python", "javascript"):
        page.click(f"#tab-{language}")
        code[language] = page.inner_text("#code-text")
        assert key not in code[language]
    fake.reset()
    page.click("#send")
    expect(page.locator("#status")).to_contain_text("Answered in")
    for language, shown in code.items():
        page.click(f"#tab-{language}")
        assert page.inner_text("#code-text") == shown
    for done in (
        run("bash", code["curl"], key),
        run(sys.executable, code["python"], key),
        node(code["javascript"], key),
    ):
        assert done.returncode == 0, done.stderr
        assert "ticks" in done.stdout
    bodies = [json.dumps(received.body, sort_keys=True) for received in fake.requests if received.body]
    assert len(bodies) == 4
    assert len(set(bodies)) == 1


def run(program: str, code: str, key: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a language as a reader would, with the key in the environment."""
    env = {**os.environ, "AIAPI_KEY": key}
    return subprocess.run([program, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60)


def node(code: str, key: str) -> subprocess.CompletedProcess[str]:
    """Run JavaScript as a module of Node.js, beside the openai package."""
    env = {**os.environ, "AIAPI_KEY": key}
    return run_node("node", ["--input-type=module", "--eval", code], npm_install("node"), env=env)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_no_grave_fault_and_fits_a_small_phone(
    chromium: Browser, service: Service, key: str, scheme: str
) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    watched = watch(context.new_page())
    page = watched.page
    page.goto(f"{service.base_url}/playground/")
    page.fill("#key", key)
    page.click("#use-key")
    expect(page.locator("#status")).to_contain_text("Key accepted")
    page.click("#send")
    expect(page.locator("#status")).to_contain_text("Answered in")
    page.click("#codes summary")
    assert watched.excess_width() <= 0
    assert grave_faults(page) == []
    assert not watched.complaints
    context.close()
