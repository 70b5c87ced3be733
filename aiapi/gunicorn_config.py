"""gunicorn's settings: `manage.py serve` runs `python -m aiapi.server -c aiapi/gunicorn_config.py aiapi.wsgi`."""

from gevent import monkey

monkey.patch_all()  # before anything imports sockets, as reading the settings does

import resource  # noqa: E402
from typing import Any  # noqa: E402

from aiapi import settings  # noqa: E402
from aiapi.logs import configuration  # noqa: E402
from aiapi.worker import SETTLE_SECONDS  # noqa: E402
from core.telemetry import metrics  # noqa: E402

#: Files that a worker may have open: each call has its client's connection and one to a provider.
FILES = 8192


def _raise_files() -> int:
    """Raise the soft limit on open files, which is 1,024 on many systems, as far as the hard one lets; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


bind = f"{settings.HOST}:{settings.PORT}"
workers = settings.WEB_CONCURRENCY
worker_class = "aiapi.worker.Worker"
worker_connections = min(2000, _raise_files() // 2)
http_parser = "auto"  # gunicorn_h1c, the parser in C, where it is installed
graceful_timeout = settings.GRACEFUL_TIMEOUT + SETTLE_SECONDS  # when gunicorn kills what has not ended by itself
timeout = 60  # a worker whose event loop stands still for so long is replaced
sendfile = False  # gevent has none: so all is written by sendall, and is seen to wait for a slow client
keepalive = 75  # longer than the idle time of usual balancers, so that they close first
max_requests = 0
limit_request_line = 8190
# Nobody's headers say where the service lies or how it was reached: by default gunicorn believes whoever connects from
# this machine. Django reads X-Forwarded-Proto itself, behind TRUSTED_PROXIES.
forwarded_allow_ips = ""
forwarder_headers = ""
accesslog = None  # aiapi.middleware writes a line a request
logconfig_dict = configuration(settings.LOG_LEVEL)  # gunicorn's own lines are JSON like the others
control_socket_disable = True


def on_starting(server: object) -> None:
    """Do what all workers share, before there are any: their metrics' folder, and the tables of tokens.

    To read those takes a second.
    """
    metrics.make_folder()
    from inference.protocols.tokens import count_tokens

    for model in ("gpt-4o", "gpt-4"):
        count_tokens([], model=model)


def child_exit(server: object, worker: Any) -> None:
    """Take a worker that has ended off the metrics of those that live."""
    metrics.forget_worker(worker.pid)


def on_exit(server: object) -> None:
    """Remove what the workers shared."""
    metrics.remove_folder()
