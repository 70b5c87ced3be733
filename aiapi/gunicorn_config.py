"""gunicorn's settings: `manage.py serve` runs `python -m aiapi.server -c aiapi/gunicorn_config.py aiapi.wsgi`."""

from gevent import monkey

monkey.patch_all()  # before anything imports sockets, as the settings do

import resource  # noqa: E402
from typing import Any  # noqa: E402

from aiapi import settings  # noqa: E402
from aiapi.logs import configuration  # noqa: E402
from aiapi.worker import SETTLE_SECONDS  # noqa: E402
from core.telemetry import metrics_folder  # noqa: E402

#: Open files for a worker: each call has a connection to its client and one to a provider.
FILES = 8192


def _raise_files() -> int:
    """Raise the soft limit on open files (often 1,024) to FILES, or as far as the hard limit permits; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


bind = f"{settings.HOST}:{settings.PORT}"
workers = settings.WEB_CONCURRENCY
worker_class = "aiapi.worker.Worker"
worker_connections = min(2000, _raise_files() // 2)
http_parser = "auto"  # gunicorn_h1c, the C parser, if it is installed
graceful_timeout = settings.GRACEFUL_TIMEOUT + SETTLE_SECONDS  # seconds until gunicorn kills a worker
timeout = 60  # seconds after which a worker with a blocked event loop is replaced
sendfile = False  # gevent has no sendfile; with sendall, waits for slow clients are tracked
keepalive = 75  # longer than the idle timeout of usual load balancers, so that they close first
max_requests = 0
limit_request_line = 8190
# Trust no forwarding headers: by default gunicorn trusts all clients on this machine. Django reads X-Forwarded-Proto
# itself, if TRUSTED_PROXIES is set.
forwarded_allow_ips = ""
forwarder_headers = ""
accesslog = None  # aiapi.middleware logs each request
logconfig_dict = configuration(settings.LOG_LEVEL)  # gunicorn's own lines are JSON like the others
control_socket_disable = True


def on_starting(server: object) -> None:
    """Create what all workers share before they are forked: the metrics folder and the tokenizer tables.

    Loading the tables takes a second.
    """
    metrics_folder.make_folder()
    from inference.protocols.tokens import count_tokens

    for model in ("gpt-4o", "gpt-4"):
        count_tokens([], model=model)


def child_exit(server: object, worker: Any) -> None:
    """Remove the gauges of a worker that has ended."""
    metrics_folder.forget_worker(worker.pid)


def on_exit(server: object) -> None:
    """Remove the metrics folder."""
    metrics_folder.remove_folder()
