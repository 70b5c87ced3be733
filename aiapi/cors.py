"""CORS headers for pages of other origins. The setting CORS_ALLOWED_ORIGINS lists the origins."""

#: Response headers that a page's script may read.
EXPOSED = [
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
ALLOWED = [
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
