"""The pages' modules as production serves them: under names with a hash, down to the last import."""

from __future__ import annotations

import re
from pathlib import Path

from django.conf import LazySettings
from django.contrib.staticfiles.storage import StaticFilesStorage

from aiapi.static_files import HashedFiles

HASHED = re.compile(r"\./[a-z]+\.[0-9a-f]{12}\.js")


def collected(folder: Path, source: Path) -> HashedFiles:
    """Collect the pages' own files into a folder as collectstatic does."""
    origin, storage = StaticFilesStorage(source), HashedFiles(folder)
    names = [str(path.relative_to(source)) for path in (source / "site").iterdir()]
    for name in names:
        with origin.open(name) as file:
            storage.save(name, file)
    for name, _, done in storage.post_process({name: (origin, name) for name in names}):
        assert not isinstance(done, Exception), f"{name}: {done}"
    return storage


def test_it_imports_modules_by_their_hashed_names(tmp_path: Path, settings: LazySettings) -> None:
    storage = collected(tmp_path, settings.BASE_DIR / "static")
    waiting, seen = [storage.stored_name("site/account.js"), storage.stored_name("site/playground.js")], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        imported = re.findall(r'^import .* from "(.+)";$', (tmp_path / name).read_text(), re.MULTILINE)
        assert [each for each in imported if not HASHED.fullmatch(each)] == []
        waiting += {f"site/{each.removeprefix('./')}" for each in imported} - seen
    assert len(seen) > 10
    assert all((tmp_path / f"{name}.gz").exists() for name in seen if (tmp_path / name).stat().st_size > 1000)
