"""The commands that serve say in one line that a port is none."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command


@pytest.mark.parametrize("command", ["local_model", "fake_upstream"])
@pytest.mark.parametrize("port", ["99999999", "-1", "http"])
def test_it_refuses_a_port_that_is_none(command: str, port: str) -> None:
    with pytest.raises(CommandError, match=f"{port} is not a whole number from"):
        call_command(command, f"--port={port}")
