"""Django settings from environment variables (core.env). No other module reads the environment.

The only exception is a provider's secret: inference reads the variable whose name is in the provider's row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from csp.constants import NONE, SELF
from django.templatetags.static import static

from core.env import Environment, cache_settings, database_settings

BASE_DIR = Path(__file__).resolve().parent.parent
ENV = Environment(os.environ)

NAME = "AI API"
VERSION = "1.0.0"
DESCRIPTION = "Production-ready AI API with authentication and rate limiting"

# Environment and secrets
ENVIRONMENT = ENV.choice(
    "ENVIRONMENT",
    ("development", "production"),
    "development",
    help="production refuses default secrets and demo keys, and enables what HTTPS needs",
)
IS_PRODUCTION = ENVIRONMENT == "production"
DEBUG = False
DEFAULT_SECRET_KEY = "development-only-secret-key-that-production-refuses-0123456789"  # noqa: S105
DEFAULT_PEPPERS = ["development-only-pepper-that-production-refuses"]
SECRET_KEY = ENV.text(
    "SECRET_KEY", DEFAULT_SECRET_KEY, secret=True, help="signs admin sessions; at least 50 random characters"
)
API_KEY_PEPPERS = ENV.names(
    "API_KEY_PEPPERS",
    DEFAULT_PEPPERS,
    secret=True,
    help="secrets for the digests of API keys: the first for new keys, the others are still accepted",
)
ALLOW_PLAIN_KEYS = not IS_PRODUCTION  # demo keys such as dev_key_123 exist in development only

# Network
HOST = ENV.text("HOST", "127.0.0.1", help="address to listen on; 0.0.0.0 in the image")
PORT = ENV.integer("PORT", 8000, minimum=1, maximum=65535, help="port to listen on")
WEB_CONCURRENCY = ENV.integer("WEB_CONCURRENCY", 1, minimum=1, maximum=256, help="web workers of a server")
GRACEFUL_TIMEOUT = ENV.integer(
    "GRACEFUL_TIMEOUT", 30, minimum=1, maximum=3600, help="seconds for open requests to finish at shutdown"
)
ALLOWED_HOSTS = ENV.names(
    "ALLOWED_HOSTS",
    [] if IS_PRODUCTION else ["localhost", "127.0.0.1", "[::1]"],
    help="host names of the service; required in production",
)
CORS_ALLOWED_ORIGINS = ENV.names("CORS_ALLOWED_ORIGINS", help="origins whose pages may call the API from a browser")
CSRF_TRUSTED_ORIGINS = ENV.names("CSRF_TRUSTED_ORIGINS", help="https:// origins of the admin behind a proxy")
TRUSTED_PROXIES = ENV.integer(
    "TRUSTED_PROXIES", 0, minimum=0, maximum=10, help="proxies in front whose X-Forwarded-* headers are trusted"
)
HTTPS_ONLY = ENV.boolean(
    "HTTPS_ONLY", IS_PRODUCTION, help="redirect to HTTPS, and send HSTS and secure cookies (default: in production)"
)

# Stores
DATABASE_URL = ENV.url(
    "DATABASE_URL",
    ("postgres", "postgresql", "sqlite"),
    f"sqlite:///{BASE_DIR / 'var' / 'aiapi.sqlite3'}",
    secret=True,
    help="PostgreSQL or SQLite; default: a SQLite file under var/",
)
DATABASE_POOL_SIZE = ENV.integer(
    "DATABASE_POOL_SIZE", 8, minimum=1, maximum=1000, help="most PostgreSQL connections of a process"
)
REDIS_URL = ENV.url(
    "REDIS_URL",
    ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"),
    secret=True,
    help="the state store, a Redis or Valkey that never evicts: limits and records; bin/run starts its own without it",
)
CACHE_URL = ENV.url(
    "CACHE_URL",
    ("redis", "rediss", "unix"),
    secret=True,
    help="the cache store, a Redis or Valkey with allkeys-lru, not a cluster; default: a few answers in each process",
)
CACHE_TTL = ENV.integer("CACHE_TTL", 3600, minimum=1, help="seconds that an answer is cached")
CACHE_ANSWER_BYTES = ENV.integer(
    "CACHE_ANSWER_BYTES", 1_048_576, minimum=0, maximum=2**31 - 1, help="largest answer that is cached"
)
REDIS_TIMEOUT = ENV.number(
    "REDIS_TIMEOUT", 0.25, minimum=0.01, maximum=10, help="seconds that a command to the state or cache store may take"
)
LIMITS_LEASE_SECONDS = ENV.integer(
    "LIMITS_LEASE_SECONDS", 20, minimum=5, maximum=25, help="seconds until a dead process's reservations are charged"
)
AUTH_STALE_SECONDS = ENV.integer(
    "AUTH_STALE_SECONDS", 0, minimum=0, maximum=86400, help="seconds that known keys work without the database"
)

# The model
OPENAI_API_KEY = ENV.text("OPENAI_API_KEY", secret=True, help="the provider's secret")
OPENAI_BASE_URL = ENV.url("OPENAI_BASE_URL", ("http", "https"), help="an OpenAI-compatible server, including /v1")
OPENAI_MODEL = ENV.text(
    "OPENAI_MODEL", help="default model; without it gpt-3.5-turbo, or the local demo model if no provider is set"
)
LOCAL_MODEL_URL = ENV.url("LOCAL_MODEL_URL", ("http",), help="address of the local demo model; bin/run sets it")
UPSTREAM_TIMEOUT = ENV.number(
    "UPSTREAM_TIMEOUT",
    60,
    minimum=0.1,
    maximum=3600,
    help="seconds that a plain call may take, or a stream until its first event",
)
UPSTREAM_CONNECT_TIMEOUT = ENV.number(
    "UPSTREAM_CONNECT_TIMEOUT", 5, minimum=0.1, maximum=60, help="seconds to connect to a provider"
)
UPSTREAM_IDLE_TIMEOUT = ENV.number(
    "UPSTREAM_IDLE_TIMEOUT", 60, minimum=0.1, maximum=3600, help="seconds that a provider's stream may be silent"
)
UPSTREAM_STREAM_TIMEOUT = ENV.number(
    "UPSTREAM_STREAM_TIMEOUT", 600, minimum=1, maximum=86400, help="seconds that a stream may take in total"
)
STREAM_FIRST_BYTE_SECONDS = ENV.number(
    "STREAM_FIRST_BYTE_SECONDS",
    10,
    minimum=0.1,
    maximum=60,
    help="seconds that a stream's status waits for the first byte, so that an early failure is a plain error",
)
STREAM_KEEP_ALIVE_SECONDS = ENV.number(
    "STREAM_KEEP_ALIVE_SECONDS", 15, minimum=0.5, maximum=300, help="seconds of silence before a stream gets a comment"
)
UPSTREAM_CREDIT_PAUSE = ENV.number(
    "UPSTREAM_CREDIT_PAUSE",
    300,
    minimum=1,
    maximum=86400,
    help="seconds without calls to a deployment whose provider reports that the credit is used up",
)
UPSTREAM_CONCURRENCY = ENV.integer(
    "UPSTREAM_CONCURRENCY", 1000, minimum=1, maximum=10_000, help="most concurrent model calls of a web worker"
)
UPSTREAM_QUEUE_SECONDS = ENV.number(
    "UPSTREAM_QUEUE_SECONDS", 2, minimum=0, maximum=60, help="seconds that a call waits to be one of them"
)

# Bounds
MAX_BODY_BYTES = ENV.integer("MAX_BODY_BYTES", 64 * 1024, minimum=1024, help="largest body of /chat and /summarize")
MAX_V1_BODY_BYTES = ENV.integer("MAX_V1_BODY_BYTES", 32 * 1024 * 1024, minimum=1024, help="largest body under /v1")
MAX_UNMETERED_BODY_BYTES = ENV.integer(
    "MAX_UNMETERED_BODY_BYTES",
    8 * 1024 * 1024,
    minimum=1024,
    help="largest body under /v1 for keys without a token limit or a budget",
)
MAX_ANSWER_BYTES = ENV.integer(
    "MAX_ANSWER_BYTES",
    64 * 1024 * 1024,
    minimum=1024,
    help="largest answer of a provider, decompressed, streams included",
)
IMAGE_URLS = ENV.choice(
    "IMAGE_URLS",
    ("https", "data"),
    "https",
    help="images under /v1: https also lets providers fetch them from public hosts, data accepts inline images only",
)
FAILED_KEY_RATE = ENV.rate("FAILED_KEY_RATE", "30/m", help="invalid keys from one address before it gets 429")
ADMIN_LOGIN_RATE = ENV.rate("ADMIN_LOGIN_RATE", "10/m", help="log-in attempts in the admin from one address")

# Retention
LOG_RETENTION_DAYS = ENV.integer(
    "LOG_RETENTION_DAYS",
    90,
    minimum=0,
    maximum=36_500,
    help="days that request records are kept (the last two always); 0: forever",
)
ROLLUP_RETENTION_DAYS = ENV.integer(
    "ROLLUP_RETENTION_DAYS",
    3653,
    minimum=0,
    maximum=36_500,
    help="days that sums are kept, at least as long as the records (a key's quarter hours: just as long); 0: forever",
)
CONTENT_RETENTION_HOURS = ENV.integer(
    "CONTENT_RETENTION_HOURS",
    72,
    minimum=1,
    maximum=8760,
    help="hours that prompts and answers of accounts with content logging are kept",
)
CONTENT_MAX_BYTES = ENV.integer(
    "CONTENT_MAX_BYTES", 65536, minimum=1024, maximum=16_777_216, help="most that is kept of a prompt, and of an answer"
)

# Alerts
WATCH_SECONDS = ENV.number(
    "WATCH_SECONDS",
    15,
    minimum=1,
    maximum=3600,
    help="seconds between two rounds of the leading worker's alert checks",
)
ALERT_WEBHOOK_URL = ENV.url("ALERT_WEBHOOK_URL", ("http", "https"), secret=True, help="where alerts are posted")
ALERT_WEBHOOK_SECRET = ENV.text("ALERT_WEBHOOK_SECRET", secret=True, help="signs the posts to the webhook")
ALERT_EMAILS = ENV.names("ALERT_EMAILS", help="operators who get alerts by e-mail")
ALERT_ERROR_RATE = ENV.number(
    "ALERT_ERROR_RATE", 10, minimum=0.1, maximum=100, help="percent of failed requests in five minutes that alerts"
)
EMAIL_URL = ENV.url(
    "EMAIL_URL",
    ("smtp", "smtp+tls", "smtps"),
    secret=True,
    help="mail server: smtp+tls://USER:PASSWORD@HOST:587; without it no e-mail is sent",
)
DEFAULT_FROM_EMAIL = ENV.text("EMAIL_FROM", "ai-api@localhost", help="sender of e-mails")
_MAIL = urlsplit(EMAIL_URL)
EMAIL_HOST = _MAIL.hostname or "localhost"
EMAIL_PORT = _MAIL.port or {"smtp+tls": 587, "smtps": 465}.get(_MAIL.scheme, 25)
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(_MAIL.username or ""), unquote(_MAIL.password or "")
EMAIL_USE_TLS, EMAIL_USE_SSL = _MAIL.scheme == "smtp+tls", _MAIL.scheme == "smtps"  # STARTTLS; TLS from the start
EMAIL_TIMEOUT = 10

# The first administrator, created by `manage.py bootstrap`
ADMIN_USERNAME = ENV.text("ADMIN_USERNAME", "admin", help="name of the first administrator")
ADMIN_PASSWORD = ENV.text(
    "ADMIN_PASSWORD", secret=True, help="password of the first administrator; default: generated and printed once"
)

# Monitoring
METRICS_TOKEN = ENV.text("METRICS_TOKEN", secret=True, help="bearer token for /metrics")
METRICS_NETWORKS = ENV.networks(
    "METRICS_NETWORKS",
    help="networks that may read /metrics without the token; default: loopback, or none if there is a token",
)
OTEL_EXPORTER_OTLP_ENDPOINT = ENV.url(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    ("http", "https"),
    help="OpenTelemetry collector for traces (OTLP over HTTP, at /v1/traces); without it no traces",
)
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = ENV.url(
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ("http", "https"), help="the same with the whole path"
)
OTEL_TRACES_EXPORTER = ENV.choice("OTEL_TRACES_EXPORTER", ("otlp", "none"), "otlp", help="none turns traces off")
OTEL_SDK_DISABLED = ENV.boolean("OTEL_SDK_DISABLED", False, help="true turns traces off")
LOG_LEVEL = ENV.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", help="least severe level logged")

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin.apps.SimpleAdminConfig",  # aiapi.urls imports the admin modules: a worker needs none
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "corsheaders",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "accounts",
    "monitoring",
    "inference",
    "operations",
    "aiapi",
]

MIDDLEWARE = [
    "aiapi.middleware.RequestMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "aiapi.middleware.PagePolicy",
    "aiapi.middleware.PageSessions",
    "aiapi.middleware.PageRevalidation",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "aiapi.middleware.PageUsers",
    "aiapi.middleware.AdminLoginLimit",
    "aiapi.middleware.PageMessages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "aiapi.urls"
APPEND_SLASH = True  # for the admin; API paths exist in both forms
WSGI_APPLICATION = "aiapi.wsgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": database_settings(DATABASE_URL, pool_size=DATABASE_POOL_SIZE)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CACHES = cache_settings(
    CACHE_URL, ttl=CACHE_TTL, timeout=REDIS_TIMEOUT, attempts_url="" if "+cluster" in REDIS_URL else REDIS_URL
)
ANSWER_CACHE = "answers"
# If the counter of failed attempts is unavailable, log-ins and keys still work instead of failing with 500.
RATELIMIT_USE_CACHE = "attempts"
RATELIMIT_FAIL_OPEN = True

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_REDIRECT_URL = "/admin/"
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS_ONLY
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS_ONLY else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS_ONLY
SECURE_REDIRECT_EXEMPT = [r"^health(/|$)", r"^metrics/?$"]  # called by monitoring in plain HTTP
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "aiapi.errors.csrf_failure"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}
#: Response headers that a page's script may read.
CORS_EXPOSE_HEADERS = [
    "X-Request-ID",
    "X-Process-Time",
    "X-Cache",
    "X-Model",
    "X-Cost-USD",
    "X-Fallback",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Idempotency-Replayed",
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
]
#: Request headers that a page's script may send.
CORS_ALLOW_HEADERS = [
    "accept",
    "authorization",
    "cache-control",
    "content-type",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "x-api-key",
    "x-cache-answer",
    "x-request-id",
    # Sent by OpenAI's client, in browsers too.
    "openai-beta",
    "openai-organization",
    "openai-project",
    *(
        f"x-stainless-{name}"
        for name in (
            "arch",
            "async",
            "custom-poll-interval",
            "helper-method",
            "lang",
            "os",
            "package-version",
            "poll-helper",
            "raw-response",
            "read-timeout",
            "retry-count",
            "runtime",
            "runtime-version",
            "timeout",
        )
    ),
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles" if IS_PRODUCTION else None  # in development, finders serve the files
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = not IS_PRODUCTION
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "aiapi.static_files.HashedFiles"
        if IS_PRODUCTION
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}
LOGGING_CONFIG = "aiapi.logs.configure"
LOGGING = {"level": LOG_LEVEL}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["inference.api.parsing.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "aiapi.schema.ApiSchema",
    "EXCEPTION_HANDLER": "aiapi.errors.handle_exception",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
    "COMPACT_JSON": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "AI API",
    "VERSION": VERSION,
    "DESCRIPTION": DESCRIPTION,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": True,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "PREPROCESSING_HOOKS": ["aiapi.schema.without_slashes"],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "LICENSE": {"name": "MIT"},
}
UNFOLD: dict[str, Any] = {
    "SITE_TITLE": NAME,
    "SITE_HEADER": NAME,
    "SITE_SYMBOL": "hub",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "sizes": "any", "href": lambda _: static("site/favicon.svg")}
    ],
    "SITE_URL": "/",
    "SHOW_VIEW_ON_SITE": False,
    "SIDEBAR": {"show_search": True},
    "DASHBOARD_CALLBACK": "operations.dashboard.views.dashboard",
}
