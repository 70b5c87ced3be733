"""docs/translation.md says what becomes of each parameter, as the code has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import settings

from inference.protocols.translation import Chain
from inference.protocols.translations import TRANSLATIONS

TABLES = {
    protocol.path: (translation.first if isinstance(translation, Chain) else translation).fields
    for protocol, translation in TRANSLATIONS.items()
}


@pytest.mark.parametrize("path", TABLES)
def test_the_docs_have_the_table_of_each_translation(path: str) -> None:
    text = (Path(settings.BASE_DIR) / "docs" / "translation.md").read_text()
    section = text.split(f"\n## `POST /v1{path}` ")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ", 1) for line in section.splitlines() if line.startswith("| `")]
    assert {name.strip(" `"): becomes.strip() for name, becomes in rows} == dict(TABLES[path])
