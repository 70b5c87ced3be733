"""Where everything is: API paths answer with and without a slash, unknown ones with a plain 404."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.urls import URLPattern

from aiapi.urls import urlpatterns
from inference.tests.fixtures import Api

API_PATHS = [
    "/" + str(pattern.pattern).removeprefix("^").removesuffix("/?$").replace("\\.", ".")
    for pattern in urlpatterns
    if isinstance(pattern, URLPattern) and str(pattern.pattern).endswith("/?$")
]
CONCRETE = [re.sub(r"\(\?P<\w+>[^)]*\)", "1", path) for path in API_PATHS]


@pytest.mark.parametrize("path", CONCRETE)
def test_it_answers_both_forms_of_a_path_alike(roomy: Api, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        bare, slashed = (roomy.send(method, form, {} if method == "POST" else None) for form in (path, path + "/"))
        assert bare.status_code == slashed.status_code
        assert bare.status_code not in (301, 302, 307, 308, 500)
        assert bare["Content-Type"] == slashed["Content-Type"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/nowhere/", "/chat//", "/chats", "/chat/more", "/CHAT", "/chat%0A", "/%00"]
)
def test_it_answers_404_elsewhere(api: Api, path: str) -> None:
    for method in ("GET", "POST"):
        answer = api.send(method, path, b"{}" if method == "POST" else None)
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"


def test_it_redirects_the_admin_to_its_slash(api: Api) -> None:
    answer: Any = api.get("/admin", key=None)
    assert (answer.status_code, answer["Location"]) == (301, "/admin/")
