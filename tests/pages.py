"""What every test of a page in a real browser looks for: complaints, other hosts, kept secrets, axe-core's findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, Request

from tests.npm import npm_install

#: The grades of axe-core's findings that no page may have.
GRAVE = ("serious", "critical")
#: What a browser says by itself of an answer that is no success; the tests that provoke one allow it.
FAILED_REQUEST = "Failed to load resource: the server responded with a status of"


@dataclass
class Watched:
    """A page, and what was seen of it since it was opened. `requests` are the addresses that it asked."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        """Name the hosts that were asked, ports included."""
        return {urlsplit(address).netloc for address in self.requests if not address.startswith(("data:", "blob:"))}

    def excess_width(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def keeps(self, secret: str) -> list[str]:
        """Name the places that outlive a page's memory, or leave it by the address, which hold a secret."""
        stores = "[JSON.stringify(localStorage), JSON.stringify(sessionStorage), JSON.stringify(history.state)]"
        places = {
            "address": " ".join([self.page.url, *self.requests]),
            "cookies": str(self.page.context.cookies()),
            "storage": str(self.page.evaluate(stores)),
        }
        return [name for name, content in places.items() if secret in content]


def watch(page: Page, *, allowed: Callable[[str], bool] = lambda text: text.startswith(FAILED_REQUEST)) -> Watched:
    """Begin to watch a page for scripts that fail or are forbidden, missing files and requests."""
    watched = Watched(page)

    def told(text: str) -> None:
        if not allowed(text):
            watched.complaints.append(text)

    def asked(request: Request) -> None:
        watched.requests.append(request.url)

    page.on("console", lambda message: told(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on("request", asked)
    return watched


def grave_faults(page: Page) -> list[str]:
    """List what axe-core finds serious or critical in a page as it is now: rule, help and the elements."""
    source = (npm_install("axe") / "node_modules" / "axe-core" / "axe.min.js").read_text()
    page.evaluate(source)  # by the debugger, which a Content-Security-Policy doesn't stop
    found: list[dict[str, Any]] = page.evaluate("axe.run()")["violations"]
    return [
        f"{each['id']}: {each['help']} ({node['target']}) {node['any'][0]['message'] if node['any'] else ''}"
        for each in found
        if each["impact"] in GRAVE
        for node in each["nodes"]
    ]
