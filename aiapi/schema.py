"""How the API describes itself in OpenAPI (drf-spectacular)."""

from __future__ import annotations

from drf_spectacular.openapi import AutoSchema


class ApiSchema(AutoSchema):
    """Describes an endpoint; extended below with what all have in common."""
