"""The guides and references under /docs/, rendered from docs/*.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from django.conf import settings
from django.utils.html import escape
from django.utils.text import slugify
from markdown_it import MarkdownIt
from markdown_it.token import Token

#: Files below docs/ by the name in the URL, in the order of reading, with their titles.
GUIDES = {
    "quickstart": ("guides/quickstart.md", "Quickstart"),
    "streaming": ("guides/streaming.md", "Streaming"),
    "limits": ("guides/limits.md", "Limits and budgets"),
    "errors": ("guides/errors.md", "Errors and retries"),
    "migration": ("guides/migration.md", "Migrate from OpenAI"),
    "api": ("api.md", "API reference"),
    "openai": ("openai.md", "OpenAI compatibility"),
    "anthropic": ("anthropic.md", "Anthropic and Claude Code"),
    "translation": ("translation.md", "Translation between formats"),
    "exactness": ("exactness.md", "What is exact"),
    "usage": ("usage.md", "Tokens and prices"),
}
#: The address and the key of the examples, which the page replaces by its own.
HOST = "https://your.host"
EXAMPLE_HOST, EXAMPLE_KEY = "localhost:8000", "dev_key_123"
SCROLLING = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
FILE_LINK = re.compile(r"(?:\.\./)?(?:guides/)?(\w+)\.md(#.*)?")


@dataclass(frozen=True, slots=True)
class Guide:
    """A rendered guide, with its sections as `(anchor, title)`."""

    title: str
    html: str
    sections: list[tuple[str, str]]


@cache
def guide(name: str) -> Guide:
    """Render a guide. HTML in its text is escaped."""
    path, title = GUIDES[name]
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("fence", _code_block)
    parser.add_render_rule("table_open", lambda *_: f"{SCROLLING}<table>")
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = parser.parse((settings.BASE_DIR / "docs" / path).read_text())
    sections = []
    for token, following in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slugify(following.content))
            if token.tag == "h2":
                sections.append((slugify(following.content), following.content.replace("`", "")))
        _point_links_here(token.children or [])
    return Guide(title, parser.renderer.render(tokens, parser.options, {}), sections)


def _code_block(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    """Return code in a box, with a button that copies it once its script has run."""
    token = tokens[index]
    return (
        f'<div class="code-block"><div class="actions"><span class="small quiet">{escape(token.info or "text")}</span>'
        '<span class="small quiet" role="status"></span><button type="button" class="small" hidden>Copy</button></div>'
        f'<pre tabindex="0"><code>{escape(token.content)}</code></pre></div>'
    )


def _point_links_here(tokens: list[Token]) -> None:
    """Point links between files at their pages, and leave the text only of links to files that have none.

    A link whose text is a file's name gets the page's title.
    """
    is_text = False
    for token in tokens:
        if token.type == "text" and (named := FILE_LINK.fullmatch(token.content)) and named[1] in GUIDES:
            token.content = GUIDES[named[1]][1]
        if token.type == "link_open":
            found = FILE_LINK.fullmatch(str(token.attrGet("href")))
            is_text = found is not None and found[1] not in GUIDES
            if is_text:
                token.tag, token.attrs = "span", {}
            elif found is not None:
                token.attrSet("href", f"/docs/{found[1]}/{found[2] or ''}")
        elif token.type == "link_close" and is_text:
            token.tag, is_text = "span", False


def guide_html(name: str, *, origin: str, demo_key: str) -> str:
    """Return a guide's HTML whose examples have the service's origin, and its demo key if there is one."""
    html = guide(name).html.replace(f"http://{EXAMPLE_HOST}", escape(origin)).replace(HOST, escape(origin))
    return html.replace(EXAMPLE_HOST, escape(origin)).replace(EXAMPLE_KEY, demo_key or "YOUR_KEY")
