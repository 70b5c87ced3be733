"""Run a fake OpenAI-compatible provider, to try the platform without a real one."""

import resource
import signal
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from core.arguments import whole
from inference.fake_provider import FAULTS, FakeUpstream
from inference.fake_provider.settings import parse_fault


class Command(BaseCommand):
    """Serves a fake OpenAI-compatible provider until SIGINT or SIGTERM; options set its answers, delays and faults."""

    help = "Run a fake OpenAI-compatible provider, to try the platform without one. Faults: " + ", ".join(FAULTS)
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the settings of FakeUpstream as options."""
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=whole(0, 65_535), default=0, help="0 takes a free one")
        parser.add_argument("--latency", type=float, default=0, metavar="MS", help="until an answer begins")
        parser.add_argument("--first-token", type=float, default=0, metavar="MS", help="until a stream's first event")
        parser.add_argument("--chunk-interval", type=float, default=0, metavar="MS", help="between a stream's events")
        parser.add_argument("--tokens", type=int, help="words in an answer; default: what the input suggests")
        parser.add_argument("--cached-ratio", type=float, default=0, help="share of the input billed as cached, 0 to 1")
        parser.add_argument("--fault", action="append", default=[], metavar="KIND[:RATE]", help="may be repeated")
        parser.add_argument("--seed", type=int, default=0, help="of the chances of faults")
        parser.add_argument("--api-key", help="the key that callers must send; default: any")
        parser.add_argument("--model", action="append", default=[], help="a model that exists; default: any name")

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until a signal comes."""
        # Blocked before the server's thread starts, so that sigwait below receives the signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        try:
            fake = FakeUpstream(
                host=options["host"],
                port=options["port"],
                seed=options["seed"],
                latency_ms=options["latency"],
                first_token_ms=options["first_token"],
                chunk_interval_ms=options["chunk_interval"],
                tokens=options["tokens"],
                cached_ratio=options["cached_ratio"],
                faults=dict(map(parse_fault, options["fault"])),
                api_key=options["api_key"],
                models=options["model"],
            ).start()
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"listening on {fake.base_url}")
        self.stdout.flush()
        signal.sigwait((signal.SIGINT, signal.SIGTERM))
        fake.stop()
