"""DRF's renderer of JSON, quicker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from rest_framework import renderers


class JSONRenderer(renderers.JSONRenderer):
    """DRF's renderer, which writes by orjson unless the Accept header asks for an indent."""

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> Any:
        """Return data as JSON; nothing for None. Other types are written as by DRF, datetimes too; NaN as null."""
        if data is None or accepted_media_type != self.media_type:
            return super().render(data, accepted_media_type, renderer_context)
        try:
            return orjson.dumps(data, self.encoder_class().default, orjson.OPT_PASSTHROUGH_DATETIME)
        except TypeError:
            return super().render(data, accepted_media_type, renderer_context)
