"""gunicorn's settings: `gunicorn -c aiapi/gunicorn_config.py aiapi.wsgi` (`manage.py serve` runs just that)."""

from gevent import monkey

monkey.patch_all()  # before anything imports sockets, as reading the settings does

from typing import Any  # noqa: E402

from aiapi import settings  # noqa: E402
from aiapi.logs import configuration  # noqa: E402
from aiapi.worker import SETTLE_SECONDS  # noqa: E402
from monitoring import metrics_folder  # noqa: E402

bind = f"{settings.HOST}:{settings.PORT}"
workers = settings.WEB_CONCURRENCY
worker_class = "aiapi.worker.Worker"
worker_connections = 2000
http_parser = "auto"  # gunicorn_h1c, the parser in C, where it is installed
graceful_timeout = settings.GRACEFUL_TIMEOUT + SETTLE_SECONDS  # when gunicorn kills what has not ended by itself
timeout = 60  # a worker whose event loop stands still for so long is replaced
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
    metrics_folder.make_folder()
    from inference.tokens import count_tokens

    for model in ("gpt-4o", "gpt-4"):
        count_tokens([], model=model)


def child_exit(server: object, worker: Any) -> None:
    """Take a worker that has ended off the metrics of those that live."""
    metrics_folder.forget_worker(worker.pid)


def on_exit(server: object) -> None:
    """Remove what the workers shared."""
    metrics_folder.remove_folder()
