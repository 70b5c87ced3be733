"""Django settings from environment variables (core.env), which docs/configuration.md describes.

No other module reads the environment, except for a provider's secret: inference reads the variable whose name is in the
provider's row.
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
ENVIRONMENT = ENV.choice("ENVIRONMENT", ("development", "production"), "development")
IS_PRODUCTION = ENVIRONMENT == "production"
DEBUG = False
DEFAULT_SECRET_KEY = "development-only-secret-key-that-production-refuses-0123456789"  # noqa: S105
DEFAULT_PEPPERS = ["development-only-pepper-that-production-refuses"]
SECRET_KEY = ENV.text("SECRET_KEY", DEFAULT_SECRET_KEY, secret=True)
API_KEY_PEPPERS = ENV.names("API_KEY_PEPPERS", DEFAULT_PEPPERS, secret=True)
ALLOW_PLAIN_KEYS = not IS_PRODUCTION  # demo keys such as dev_key_123 exist in development only

# Network
HOST = ENV.text("HOST", "127.0.0.1")
PORT = ENV.integer("PORT", 8000, minimum=1, maximum=65535)
WEB_CONCURRENCY = ENV.integer("WEB_CONCURRENCY", 1, minimum=1, maximum=256)
GRACEFUL_TIMEOUT = ENV.integer("GRACEFUL_TIMEOUT", 30, minimum=1, maximum=3600)
ALLOWED_HOSTS = ENV.names("ALLOWED_HOSTS", [] if IS_PRODUCTION else ["localhost", "127.0.0.1", "[::1]"])
CORS_ALLOWED_ORIGINS = ENV.names("CORS_ALLOWED_ORIGINS")
CSRF_TRUSTED_ORIGINS = ENV.names("CSRF_TRUSTED_ORIGINS")
TRUSTED_PROXIES = ENV.integer("TRUSTED_PROXIES", 0, minimum=0, maximum=10)
#: An e-mail or web address for those who want a key; shown on the landing page.
CONTACT = ENV.text("AIAPI_CONTACT")
PUBLIC_MODELS = ENV.boolean("PUBLIC_MODELS", not IS_PRODUCTION)
SHED_DELAY = ENV.number("SHED_DELAY", 1, minimum=0, maximum=60)
HTTPS_ONLY = ENV.boolean("HTTPS_ONLY", IS_PRODUCTION)

# Stores
DATABASE_URL = ENV.url(
    "DATABASE_URL", ("postgres", "postgresql", "sqlite"), f"sqlite:///{BASE_DIR / 'var' / 'aiapi.sqlite3'}", secret=True
)
DATABASE_POOL_SIZE = ENV.integer("DATABASE_POOL_SIZE", 8, minimum=1, maximum=1000)
REDIS_URL = ENV.url("REDIS_URL", ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"), secret=True)
CACHE_URL = ENV.url("CACHE_URL", ("redis", "rediss", "unix"), secret=True)
CACHE_TTL = ENV.integer("CACHE_TTL", 3600, minimum=1)
CACHE_ANSWER_BYTES = ENV.integer("CACHE_ANSWER_BYTES", 1_048_576, minimum=0, maximum=2**31 - 1)
REDIS_TIMEOUT = ENV.number("REDIS_TIMEOUT", 0.25, minimum=0.01, maximum=10)
LIMITS_LEASE_SECONDS = ENV.integer("LIMITS_LEASE_SECONDS", 20, minimum=5, maximum=25)
AUTH_STALE_SECONDS = ENV.integer("AUTH_STALE_SECONDS", 0, minimum=0, maximum=86400)

# The model
OPENAI_API_KEY = ENV.text("OPENAI_API_KEY", secret=True)
OPENAI_BASE_URL = ENV.url("OPENAI_BASE_URL", ("http", "https"))
OPENAI_MODEL = ENV.text("OPENAI_MODEL")
LOCAL_MODEL_URL = ENV.url("LOCAL_MODEL_URL", ("http",))
UPSTREAM_TIMEOUT = ENV.number("UPSTREAM_TIMEOUT", 60, minimum=0.1, maximum=3600)
UPSTREAM_CONNECT_TIMEOUT = ENV.number("UPSTREAM_CONNECT_TIMEOUT", 5, minimum=0.1, maximum=60)
UPSTREAM_IDLE_TIMEOUT = ENV.number("UPSTREAM_IDLE_TIMEOUT", 60, minimum=0.1, maximum=3600)
UPSTREAM_STREAM_TIMEOUT = ENV.number("UPSTREAM_STREAM_TIMEOUT", 600, minimum=1, maximum=86400)
STREAM_FIRST_BYTE_SECONDS = ENV.number("STREAM_FIRST_BYTE_SECONDS", 10, minimum=0.1, maximum=60)
STREAM_KEEP_ALIVE_SECONDS = ENV.number("STREAM_KEEP_ALIVE_SECONDS", 15, minimum=0.5, maximum=300)
UPSTREAM_CREDIT_PAUSE = ENV.number("UPSTREAM_CREDIT_PAUSE", 300, minimum=1, maximum=86400)
LOOPBACK_PROVIDERS = ENV.boolean("LOOPBACK_PROVIDERS", False)
UPSTREAM_CONCURRENCY = ENV.integer("UPSTREAM_CONCURRENCY", 2000, minimum=1, maximum=10_000)
UPSTREAM_QUEUE_SECONDS = ENV.number("UPSTREAM_QUEUE_SECONDS", 2, minimum=0, maximum=60)

# Bounds
MAX_BODY_BYTES = ENV.integer("MAX_BODY_BYTES", 64 * 1024, minimum=1024)
MAX_V1_BODY_BYTES = ENV.integer("MAX_V1_BODY_BYTES", 32 * 1024 * 1024, minimum=1024)
MAX_UNMETERED_BODY_BYTES = ENV.integer("MAX_UNMETERED_BODY_BYTES", 8 * 1024 * 1024, minimum=1024)
MAX_ANSWER_BYTES = ENV.integer("MAX_ANSWER_BYTES", 64 * 1024 * 1024, minimum=1024)
IMAGE_URLS = ENV.choice("IMAGE_URLS", ("https", "data"), "https")
FAILED_KEY_RATE = ENV.rate("FAILED_KEY_RATE", "30/m")
ADMIN_LOGIN_RATE = ENV.rate("ADMIN_LOGIN_RATE", "10/m")

# Retention
LOG_RETENTION_DAYS = ENV.integer("LOG_RETENTION_DAYS", 90, minimum=0, maximum=36_500)
ROLLUP_RETENTION_DAYS = ENV.integer("ROLLUP_RETENTION_DAYS", 3653, minimum=0, maximum=36_500)
CONTENT_RETENTION_HOURS = ENV.integer("CONTENT_RETENTION_HOURS", 72, minimum=1, maximum=8760)
CONTENT_MAX_BYTES = ENV.integer("CONTENT_MAX_BYTES", 65536, minimum=1024, maximum=16_777_216)

# Alerts
WATCH_SECONDS = ENV.number("WATCH_SECONDS", 15, minimum=1, maximum=3600)
ALERT_WEBHOOK_URL = ENV.url("ALERT_WEBHOOK_URL", ("http", "https"), secret=True)
ALERT_WEBHOOK_SECRET = ENV.text("ALERT_WEBHOOK_SECRET", secret=True)
ALERT_EMAILS = ENV.names("ALERT_EMAILS")
ALERT_ERROR_RATE = ENV.number("ALERT_ERROR_RATE", 10, minimum=0.1, maximum=100)
EMAIL_URL = ENV.url("EMAIL_URL", ("smtp", "smtp+tls", "smtps"), secret=True)
DEFAULT_FROM_EMAIL = ENV.text("EMAIL_FROM", "ai-api@localhost")
_MAIL = urlsplit(EMAIL_URL)
EMAIL_HOST = _MAIL.hostname or "localhost"
EMAIL_PORT = _MAIL.port or {"smtp+tls": 587, "smtps": 465}.get(_MAIL.scheme, 25)
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(_MAIL.username or ""), unquote(_MAIL.password or "")
EMAIL_USE_TLS, EMAIL_USE_SSL = _MAIL.scheme == "smtp+tls", _MAIL.scheme == "smtps"  # STARTTLS; TLS from the start
EMAIL_TIMEOUT = 10

# The first administrator, created by `manage.py bootstrap`
ADMIN_USERNAME = ENV.text("ADMIN_USERNAME", "admin")
ADMIN_PASSWORD = ENV.text("ADMIN_PASSWORD", secret=True)

# Monitoring
METRICS_TOKEN = ENV.text("METRICS_TOKEN", secret=True)
METRICS_NETWORKS = ENV.networks("METRICS_NETWORKS")
OTEL_EXPORTER_OTLP_ENDPOINT = ENV.url("OTEL_EXPORTER_OTLP_ENDPOINT", ("http", "https"))
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = ENV.url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ("http", "https"))
OTEL_TRACES_EXPORTER = ENV.choice("OTEL_TRACES_EXPORTER", ("otlp", "none"), "otlp")
OTEL_SDK_DISABLED = ENV.boolean("OTEL_SDK_DISABLED", False)
LOG_LEVEL = ENV.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO")

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
    "django.contrib.sessions.middleware.SessionMiddleware",
    "aiapi.middleware.PageRevalidation",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "aiapi.middleware.AdminLoginLimit",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
#: The middleware of model calls (aiapi.wsgi).
MODEL_CALL_MIDDLEWARE = [
    "aiapi.middleware.RequestMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "aiapi.middleware.OriginMiddleware",
    "django.middleware.common.CommonMiddleware",
]

ROOT_URLCONF = "aiapi.urls"
APPEND_SLASH = True  # for the admin; API paths exist in both forms
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
            ],
            "libraries": {"formats": "core.template_filters", "calls": "aiapi.template_tags"},
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
ANTHROPIC_RATES = [f"{unit}-{what}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
CORS_EXPOSE_HEADERS = [
    "X-Request-ID", "X-Process-Time", "X-Cache", "X-Model", "X-Cost-USD", "X-Fallback", "X-RateLimit-Limit",
    "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy", "Retry-After",
    "Idempotency-Replayed",
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
    *(f"anthropic-ratelimit-{each}" for each in ANTHROPIC_RATES),
    "request-id",
]  # fmt: skip
#: Names behind `x-stainless-` that OpenAI's client sends, in browsers too.
STAINLESS = (
    "arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version", "poll-helper",
    "raw-response", "read-timeout", "retry-count", "runtime", "runtime-version", "timeout",
)  # fmt: skip
#: Request headers that a page's script may send.
CORS_ALLOW_HEADERS = [
    "accept", "authorization", "cache-control", "content-type", "idempotency-key", "traceparent", "tracestate",
    "x-api-key", "x-cache-answer", "x-request-id", "openai-beta", "openai-organization", "openai-project",
    "anthropic-beta", "anthropic-version", "anthropic-dangerous-direct-browser-access",
    *(f"x-stainless-{name}" for name in STAINLESS),
]  # fmt: skip

#: The page that adds a provider sends some fields for each of its models.
DATA_UPLOAD_MAX_NUMBER_FIELDS = 10_000
TIME_ZONE = "UTC"
USE_I18N = False
FORMAT_MODULE_PATH = "aiapi.locale"
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
    "DEFAULT_RENDERER_CLASSES": ["core.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["inference.api.parsing.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "aiapi.schema.ApiSchema",
    "EXCEPTION_HANDLER": "aiapi.errors.handle_exception",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
    "COMPACT_JSON": True,
}
#: The tags of the API's endpoints, in the order of use (aiapi.schema assigns them).
API_TAGS = {
    "Ask a model": "Questions, summaries and OpenAI's protocol.",
    "Models": "What a key may use, and what it costs.",
    "Usage": "What is left of limits and budgets, and what was used.",
    "Keys": "An account's own keys, for a key with the scope keys:manage.",
    "Service": "Health, metrics and the service's description.",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "AI API",
    "VERSION": VERSION,
    "DESCRIPTION": DESCRIPTION,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": True,
    "REDOC_DIST": "SIDECAR",
    "TAGS": [{"name": name, "description": description} for name, description in API_TAGS.items()],
    "PREPROCESSING_HOOKS": ["aiapi.schema.without_slashes"],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "LICENSE": {"name": "MIT"},
}
#: The brand's colour in the admin: 600 in light mode, 500 in dark mode, as on the public pages (static/site/site.css).
BLUES = {
    50: "#eff6ff",
    100: "#dbeafe",
    200: "#bfdbfe",
    300: "#93c5fd",
    400: "#60a5fa",
    500: "#6ca6f8",
    600: "#1d4ed8",
    700: "#1e40af",
    800: "#1e3a8a",
    900: "#1c3272",
    950: "#172554",
}
UNFOLD: dict[str, Any] = {
    "SITE_TITLE": NAME,
    "SITE_HEADER": NAME,
    "SITE_ICON": lambda _: static("site/favicon.svg"),
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "sizes": "any", "href": lambda _: static("site/favicon.svg")}
    ],
    "SHOW_VIEW_ON_SITE": False,
    "ENVIRONMENT": "aiapi.navigation.environment",
    "STYLES": [lambda _: static("admin/admin.css")],
    "SCRIPTS": [lambda _: static("admin/admin.js")],
    "COLORS": {"primary": {str(weight): colour for weight, colour in BLUES.items()}},
    "SIDEBAR": {"show_search": True, "command_search": True, "navigation": "aiapi.navigation.sidebar"},
    "TABS": "aiapi.navigation.tabs",
    "COMMAND": {"search_callback": "aiapi.navigation.search", "show_history": True},
    "DASHBOARD_CALLBACK": "operations.dashboard.views.dashboard",
}
