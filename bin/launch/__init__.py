"""What bin/run and bin/test are made of. At its begin it has the standard library only: nothing is installed yet.

This file finds a Python that will do, so that old ones read it too: no syntax later than Python 3.6.
"""

import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
#: Those with which everything can be installed, the newest first.
VERSIONS = [(3, 14), (3, 13), (3, 12), (3, 11)]
CAN_MAKE_ENVIRONMENTS = "import venv, ensurepip"


class LaunchError(Exception):
    """Something that the person at the keyboard can fix; the message is one line that says what and how."""


def say(text: str) -> None:
    """Print one line at once, ahead of whatever the child processes print next."""
    print(text, flush=True)


def require_python() -> None:
    """Go on with the newest Python on the PATH that can make virtual environments, or end with one line that says how.

    Where that is another one than this, the script starts again with it.
    """
    for version in VERSIONS:
        if version <= sys.version_info[:2]:
            break
        found = shutil.which("python{}.{}".format(*version))
        if found and _runs(found):
            os.execv(found, [found, *sys.argv])  # noqa: S606
    if sys.version_info < OLDEST:
        sys.exit("error: Python 3.11 or later is needed and this is {}.{}: install one".format(*sys.version_info))
    if not _runs(sys.executable):
        sys.exit("error: Python's venv module is missing: install it (Debian, Ubuntu: apt-get install python3-venv)")


def _runs(python: str) -> bool:
    command = [python, "-c", CAN_MAKE_ENVIRONMENTS]
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
