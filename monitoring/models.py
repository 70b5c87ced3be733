"""Usage records, their rollups, the payload log, and alerts.

There is one record for each authenticated request to a model endpoint. It holds no prompt, answer or secret; the
content of accounts with content logging is in a table of its own. Names are stored beside ids, so that a record can
still be read after the account, key or model is deleted.
"""

from __future__ import annotations

from django.db import models


class RequestRecord(models.Model):
    """One request to a model endpoint, as it was answered and billed."""

    class Cache(models.TextChoices):
        HIT = "hit"
        MISS = "miss"
        COALESCED = "coalesced"
        BYPASS = "bypass"
        REPLAY = "replay"
        NONE = "", "none"

    class UsageSource(models.TextChoices):
        PROVIDER = "provider"
        ESTIMATED = "estimated"
        BOUND = "bound"
        CACHE = "cache"
        NONE = "", "none"

    id = models.UUIDField(primary_key=True, help_text="UUIDv7, made here.")
    revision = models.PositiveSmallIntegerField(default=1, help_text="A record replaces those of lower revision.")
    label = models.CharField(max_length=64, help_text="X-Request-ID as the caller saw it.")
    admitted_at = models.DateTimeField()
    account_id = models.BigIntegerField()
    account_name = models.CharField(max_length=100)
    key_id = models.BigIntegerField()
    key_name = models.CharField(max_length=100)
    endpoint = models.CharField(max_length=50)
    model = models.CharField(max_length=100, blank=True)
    deployment = models.CharField(max_length=260, blank=True)
    status = models.PositiveSmallIntegerField()
    error_code = models.CharField(max_length=50, blank=True)
    cache = models.CharField(max_length=10, choices=Cache.choices, blank=True)
    input_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0, help_text="Part of the input tokens.")
    output_tokens = models.BigIntegerField(default=0)
    cost = models.DecimalField(
        max_digits=19, decimal_places=9, null=True, default=0, help_text="US dollars; null: the model has no price."
    )
    usage_source = models.CharField(max_length=10, choices=UsageSource.choices, blank=True)
    is_partial = models.BooleanField(default=False, help_text="The answer was broken off.")
    is_overrun = models.BooleanField(default=False, help_text="The provider billed more than the bound.")
    latency_ms = models.FloatField(default=0)
    first_token_ms = models.FloatField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Calls made to providers.")
    saved_cost = models.DecimalField(
        max_digits=19, decimal_places=9, default=0, help_text="US dollars that a cached or replayed answer spared."
    )
    stages = models.CharField(max_length=200, blank=True, help_text="Milliseconds by stage: cache=0.4 upstream=812.0")
    failures = models.CharField(max_length=500, blank=True, help_text="Why attempts failed, by deployment.")
    count = models.PositiveIntegerField(default=1, help_text="Requests that this row stands for: many if refused.")

    class Meta:
        ordering = ["-admitted_at", "-id"]
        permissions = [("export_requestrecord", "Can export request records")]
        indexes = [
            # Ascending, although they are read backwards: rows appended at the end of an index fill its pages.
            models.Index(fields=["admitted_at", "id"], name="record_by_time"),
            models.Index(fields=["account_id", "admitted_at", "id"], name="record_account_by_time"),
            models.Index(fields=["key_id", "admitted_at", "id"], name="record_key_by_time"),
            models.Index(fields=["model", "admitted_at", "id"], name="record_model_by_time"),
            models.Index(fields=["label"], name="record_label"),
            # Errors are a small part of the log: a partial index of them costs little.
            models.Index(
                fields=["status", "admitted_at", "id"],
                name="record_status_by_time",
                condition=models.Q(status__gte=400),
            ),
            # Finds the newest failures without reading successful requests.
            models.Index(
                fields=["admitted_at", "id"], name="record_failed_by_time", condition=models.Q(status__gte=500)
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Rollup(models.Model):
    """The sums of the requests of one period, key, endpoint, model and outcome (see monitoring.rollups).

    In rows of the whole platform `account_id` is 0, and in these and an account's `key_id` is 0. A row covers at least
    one request.
    """

    class Grain(models.TextChoices):
        """The requests that a row covers (the platform's, an account's, a key's) and the length of its period."""

        PLATFORM_MINUTE = "pi"
        PLATFORM_QUARTER = "pq"
        PLATFORM_DAY = "pd"
        ACCOUNT_DAY = "ad"
        KEY_QUARTER = "kq"
        KEY_DAY = "kd"

    class Outcome(models.TextChoices):
        """How requests ended: answered (`ok`), `invalid` (4xx other than 429), `limited` (429), `failed` (5xx)."""

        OK = "ok"
        INVALID = "invalid"
        LIMITED = "limited"
        FAILED = "failed"

    pk = models.CompositePrimaryKey("grain", "start", "account_id", "key_id", "endpoint", "model", "outcome")
    grain = models.CharField(max_length=2, choices=Grain.choices)
    start = models.IntegerField(help_text="The first minute of the period: whole minutes since 1970-01-01 00:00 UTC.")
    account_id = models.BigIntegerField()
    key_id = models.BigIntegerField()
    endpoint = models.CharField(max_length=50, blank=True)
    model = models.CharField(max_length=100, blank=True)
    outcome = models.CharField(max_length=7, choices=Outcome.choices)
    account_name = models.CharField(max_length=100, blank=True, help_text="When the row was last written.")
    key_name = models.CharField(max_length=100, blank=True, help_text="When the row was last written.")
    requests = models.BigIntegerField()
    hits = models.BigIntegerField()
    coalesced = models.BigIntegerField()
    misses = models.BigIntegerField()
    bypassed = models.BigIntegerField()
    replayed = models.BigIntegerField()
    input_tokens = models.BigIntegerField()
    cached_tokens = models.BigIntegerField(help_text="Part of the input tokens.")
    output_tokens = models.BigIntegerField()
    cost = models.BigIntegerField(help_text="Nano-dollars: sums of NUMERIC are not exact on every database.")
    saved_cost = models.BigIntegerField(help_text="Nano-dollars that cached and replayed answers spared.")
    unpriced = models.BigIntegerField(default=0, help_text="Requests whose cost is unknown.")
    latency = models.TextField(blank=True, help_text="A histogram, see monitoring.rollups.histograms.")
    first_token = models.TextField(blank=True, help_text="A histogram, see monitoring.rollups.histograms.")

    class Meta:
        indexes = [models.Index(fields=["account_id", "grain", "start"], name="rollup_account")]

    def __str__(self) -> str:
        return f"{self.grain} {self.start} {self.account_name}/{self.key_name} {self.endpoint} {self.model}"


class RequestContent(models.Model):
    """Prompt and answer of a request of an account with content logging. It is not shown after `expires_at`."""

    record_id = models.UUIDField(primary_key=True, help_text="Id of the request's record.")
    account_id = models.BigIntegerField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)
    prompt = models.TextField(help_text="What was asked, as JSON.")
    answer = models.TextField(blank=True, help_text="What was answered, as JSON; empty where there was no answer.")
    is_cut = models.BooleanField(default=False, help_text="Longer than CONTENT_MAX_BYTES: here is its beginning.")

    def __str__(self) -> str:
        return str(self.record_id)


class Alert(models.Model):
    """One incident that operators should know of. It is firing while `ended_at` is empty."""

    class Kind(models.TextChoices):
        BUDGET = "budget"
        ERRORS = "errors", "error rate"
        PROVIDER = "provider"
        INGEST = "ingest", "ingest lag"
        DEPENDENCY = "dependency"
        PRICE = "price", "missing price"
        BOOKS = "books", "rollups or ledgers"
        TEST = "test"

    kind = models.CharField(max_length=20, choices=Kind.choices)
    subject = models.CharField(max_length=250, help_text="What tells its episodes from those of others.")
    title = models.CharField(max_length=250)
    text = models.TextField()
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        permissions = [("test_alert", "Can send a test alert")]
        constraints = [
            models.UniqueConstraint(
                fields=["subject"], condition=models.Q(ended_at=None), name="alert_one_episode_at_a_time"
            )
        ]

    def __str__(self) -> str:
        return self.title


class AlertDelivery(models.Model):
    """The delivery of an alert to one recipient. It is tried until it succeeds or has been tried often enough."""

    class Channel(models.TextChoices):
        WEBHOOK = "webhook"
        EMAIL = "email", "e-mail"

    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="deliveries")
    channel = models.CharField(max_length=10, choices=Channel.choices)
    recipient = models.CharField(max_length=254, blank=True, help_text="An e-mail address.")
    # A database default, because the worker of an earlier release may still write rows during an upgrade.
    is_end = models.BooleanField(default=False, db_default=False, help_text="It tells that the episode is over.")
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(help_text="When it may be tried again.")
    sent_at = models.DateTimeField(null=True, blank=True)
    failure = models.CharField(max_length=100, blank=True, help_text="What was wrong the last time.")

    class Meta:
        verbose_name_plural = "alert deliveries"
        indexes = [models.Index(fields=["next_at"], name="delivery_due", condition=models.Q(sent_at=None))]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.channel, self.recipient, "(resolved)" if self.is_end else "")))


class WatchTurn(models.Model):
    """The leader lock of the workers (one row): see operations.alerts.incidents."""

    holder = models.CharField(max_length=200, help_text="A process: host, process id and a random part.")
    until = models.DateTimeField(help_text="When its turn is over unless it goes on.")

    class Meta:
        default_permissions = ()  # the admin does not show it

    def __str__(self) -> str:
        return self.holder


#: The permission to see the figures of all accounts.
VIEW_RECORDS = "monitoring.view_requestrecord"
