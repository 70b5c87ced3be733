"""What the launcher says: plain lines, a progress line that rewrites itself on a terminal, and one-line failures."""

from __future__ import annotations

import sys
import time

#: Where the output is no terminal, a progress line this often (seconds).
QUIET_INTERVAL = 5.0


class LaunchError(Exception):
    """Something that the person at the keyboard can mend; the message is one line that says what and how."""


def say(text: str) -> None:
    """Print one line at once, ahead of whatever the child processes print next."""
    print(text, flush=True)


class Progress:
    """Show that a long step is alive: one line that rewrites itself on a terminal, else a line every few seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stdout.isatty()
        say(f"{title} ...")

    def update(self, detail: str) -> None:
        """Show the newest detail, cut to what fits in a terminal's line."""
        now = time.monotonic()
        if self._terminal:
            print(f"\r\033[K  {detail[:100]}", end="", flush=True)
        elif now - self._shown >= QUIET_INTERVAL:
            self._shown = now
            say(f"  {now - self._started:3.0f} s  {detail[:100]}")

    def done(self) -> None:
        """Close the line with the time that the step took."""
        if self._terminal:
            print("\r\033[K", end="")
        say(f"  done in {time.monotonic() - self._started:.0f} s")
