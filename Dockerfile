# AI API's image: the web server by default, every management command (`python manage.py worker`, ...), and `embedded`: all
# processes and their stores in one container, to try it out.

FROM python:3.11.14-slim-bookworm AS build
# The compiler is for gunicorn's request parser in C, which comes as source only; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements.txt requirements-fast.txt requirements-embedded.txt ./
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
    -r requirements.txt -r requirements-fast.txt \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary=:all: -r requirements-embedded.txt


FROM python:3.11.14-slim-bookworm
RUN groupadd --system --gid 10001 aiapi \
    && useradd --system --uid 10001 --gid aiapi --home-dir /app --shell /usr/sbin/nologin aiapi
ENV PATH=/app/bin:/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ENVIRONMENT=production \
    HOST=0.0.0.0 \
    PORT=8000
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY . .
# Collected as production serves them, by names with a digest; no secret is needed for that. `embedded` keeps its
# data in var/, for which it is given a volume; the code stays root's, so that the service can't change it.
RUN python manage.py collectstatic --no-input --verbosity 0 \
    && python -m compileall -q accounts aiapi bin core inference monitoring operations \
    && install --directory --owner aiapi --group aiapi var
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', timeout=4)"]
CMD ["python", "manage.py", "serve"]
