"""gunicorn's settings (aiapi.server)."""

import resource
from typing import Any

from gunicorn import glogging

from aiapi import settings
from aiapi.logs import configuration
from aiapi.worker import SETTLE_SECONDS
from core.telemetry import metrics_folder

#: Open files for a worker: each call has a connection to its client and one to a provider.
FILES = 8192


def _raise_files() -> int:
    """Raise the soft limit on open files (often 1,024) to FILES, or as far as the hard limit permits; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


class logger_class(glogging.Logger):  # type: ignore[misc]  # noqa: N801  (the name of the setting)
    """gunicorn's logger without the access line, which it would format although there is no access log."""

    def access(self, *args: object) -> None:
        """Do nothing: aiapi.middleware logs each request."""


bind = f"{settings.HOST}:{settings.PORT}"
workers = settings.WEB_CONCURRENCY
preload_app = True
worker_class = "aiapi.worker.WebWorker"
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
logconfig_dict = configuration(settings.LOG_LEVEL)  # gunicorn's own lines are JSON like the others
control_socket_disable = True


def child_exit(server: object, worker: Any) -> None:
    """Remove the gauges of a worker that has ended."""
    metrics_folder.forget_worker(worker.pid)
