"""Our own markup in the admin uses classes that exist: unfold's sheet is compiled, and has those that unfold uses."""

from __future__ import annotations

import re
from pathlib import Path

import unfold

ROOT = Path(__file__).resolve().parents[2]
SHEETS = [
    Path(unfold.__file__).parent / "static/unfold/css/styles.css",
    *ROOT.glob("static/admin/*.css"),
    ROOT / "static/dashboard/dashboard.css",
]
SCRIPTS = [ROOT / "static/dashboard/dashboard.js"]
MARKUP = [
    *ROOT.glob("templates/admin/**/*.html"),
    *(path for app in ("accounts", "core", "inference", "monitoring") for path in ROOT.glob(f"{app}/*.py")),
    *ROOT.glob("*/admin/*.py"),
    *ROOT.glob("operations/**/*.py"),
]


def test_it_uses_no_class_that_no_sheet_has() -> None:
    known = "".join(path.read_text() for path in [*SHEETS, *SCRIPTS]).replace("\\", "")
    used = {
        (name, path.name)
        for path in MARKUP
        for names in re.findall(r'(?<![\w:-])class="([^"{%]*)"', path.read_text())
        for name in names.split()
    }
    assert len(used) > 100
    assert not sorted((name, path) for name, path in used if not re.search(rf"\.{re.escape(name)}(?![\w-])", known))
