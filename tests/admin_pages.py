"""The admin as a test sees it, over HTTP: pages as the words that they show, and their forms, filled in and sent."""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Mapping, Sequence
from html.parser import HTMLParser
from http import HTTPStatus
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urlsplit

from tests.servers import Service

ADMIN, PASSWORD = "operator-of-the-tests", "a password for the tests"
SETUP = """
from accounts.tests.factories import make_admin, make_staff
name, password, permissions = SETTINGS
user = make_admin(name, password=password) if permissions is None else make_staff(*permissions, name=name)
user.set_password(password)
user.save()
print(user.pk)
"""
#: Elements whose content nobody reads.
UNREAD = frozenset({"script", "style", "template"})


class AdminPage(HTMLParser):
    """A page: `words` are what it shows, without its elements, `rows` those of its tables; `fields` what forms hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self._read: list[str] = []
        self.rows: list[str] = []
        self._row: int | None = None
        self._unread = 0
        self._select = self._area = ""
        self.feed(html)
        self.words = _joined(self._read)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a form holds, and what is not read."""
        held = {name: value or "" for name, value in attrs}
        name = held.get("name", "")
        self._unread += tag in UNREAD
        self._row = len(self._read) if tag == "tr" else self._row
        if tag == "input" and name and _is_sent(held):
            self.fields[name] = held.get("value", "on" if held.get("type") == "checkbox" else "")
        elif tag == "select":
            self._select = name
        elif tag == "option" and "selected" in held and self._select:
            self.fields[self._select] = held.get("value", "")
        elif tag == "textarea":
            self._area = name
            self.fields[name] = ""

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a field, or of what is not read."""
        self._unread -= tag in UNREAD
        if tag == "tr" and self._row is not None:
            self.rows.append(_joined(self._read[self._row :]))
            self._row = None
        self._select = "" if tag == "select" else self._select
        self._area = "" if tag == "textarea" else self._area

    def handle_data(self, data: str) -> None:
        """Take text."""
        if self._area:
            self.fields[self._area] += data.removeprefix("\n")
        elif not self._unread:
            self._read.append(data)


def _joined(texts: Iterable[str]) -> str:
    return " ".join(" ".join(texts).split())


def _is_sent(attributes: Mapping[str, str]) -> bool:
    kind = attributes.get("type", "text")
    return kind not in ("submit", "button", "file") and (kind not in ("checkbox", "radio") or "checked" in attributes)


class Admin:
    """A browser without scripts whose user, made for it, has logged in.

    The user is an administrator, or with `permissions` (such as "auth.change_user") staff who has just these.
    """

    def __init__(self, service: Service, name: str = ADMIN, permissions: Sequence[str] | None = None) -> None:
        script = SETUP.replace("SETTINGS", repr((name, PASSWORD, permissions)))
        self.user_id = int(service.manage("shell", "-c", script).strip().splitlines()[-1])
        self._service = service
        self._cookies: dict[str, str] = {}
        self.submit("/admin/login/", username=name, password=PASSWORD)
        assert "sessionid" in self._cookies, f"{name} could not log in"

    def status(self, path: str) -> int:
        """Open a page and return the status alone."""
        return self._ask("GET", path)[0]

    def get(self, path: str) -> tuple[int, str]:
        """Ask for what is no page; return status and text."""
        return self._ask("GET", path)

    def page(self, path: str) -> AdminPage:
        """Open a page."""
        status, html = self._ask("GET", path)
        assert status == HTTPStatus.OK, (path, status)
        return AdminPage(html)

    def submit(self, path: str, **changes: str | None) -> AdminPage:
        """Send a page's form as it is, apart from some fields (None: not sent), and return the page that follows."""
        sent = {**self.page(path).fields, **changes}
        sent = {name: value for name, value in sent.items() if value is not None and name != "_selected_action"}
        status, answer = self._ask("POST", path, urlencode(sent))
        return self.page(answer) if status == HTTPStatus.FOUND else AdminPage(answer)

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """Send a request; return its status, and the page or, of a redirect, where that leads."""
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=60)
        try:
            headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
            if body is not None:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            for name, cookie in SimpleCookie("; ".join(answer.headers.get_all("Set-Cookie") or [])).items():
                self._cookies[name] = cookie.value
            text = answer.read().decode()
            place = urlsplit(answer.headers.get("Location", ""))
            return answer.status, text if answer.status != HTTPStatus.FOUND else place._replace(
                netloc="", scheme=""
            ).geturl()
        finally:
            connection.close()
