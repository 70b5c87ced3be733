"""Find a Python that is new enough. This file runs on old ones too: no syntax later than Python 3.6."""

import importlib.util
import os
import shutil
import sys

OLDEST = (3, 11)
NEWER_NAMES = ["python3.11", "python3.12", "python3.13", "python3.14"]


def require():
    # type: () -> None
    """Go on with a Python of at least 3.11 that can make virtual environments, or end with one line that says how.

    Where this one is too old and a newer one is on the PATH, the script starts again with that.
    """
    if sys.version_info < OLDEST:
        found = next((path for path in map(shutil.which, NEWER_NAMES) if path), None)
        if not found:
            sys.exit("error: Python 3.11 or later is needed and this is {}.{}: install one".format(*sys.version_info))
        os.execv(found, [found, *sys.argv])  # noqa: S606
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        sys.exit("error: Python's venv module is missing: install it (Debian, Ubuntu: apt-get install python3-venv)")
