"""Response headers, set quickly."""

from __future__ import annotations

from collections.abc import Mapping

from django.http.response import HttpResponseBase


def set_headers(response: HttpResponseBase, headers: Mapping[str, str]) -> None:
    """Set headers of a response.

    Django checks and encodes each name and value by itself, which took 3 % of a cache hit's CPU time. Values that are
    printable ASCII, as nearly all are, need neither.
    """
    values = "".join(headers.values())
    if values.isascii() and values.isprintable():
        response.headers._store.update({name.lower(): (name, value) for name, value in headers.items()})
        return
    for name, value in headers.items():
        response[name] = value
