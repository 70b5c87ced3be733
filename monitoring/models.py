"""What happened: one record a request to a model endpoint that passed authentication.

No prompt, answer or secret. Names are stored beside ids so that a record outlives what it names.
"""

from __future__ import annotations

from django.db import models


class RequestRecord(models.Model):
    """One request, as it was answered and billed."""

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
    cost = models.DecimalField(max_digits=19, decimal_places=9, default=0, help_text="US dollars.")
    usage_source = models.CharField(max_length=10, choices=UsageSource.choices, blank=True)
    is_partial = models.BooleanField(default=False, help_text="The answer was broken off.")
    is_overrun = models.BooleanField(default=False, help_text="The provider billed more than the bound.")
    latency_ms = models.FloatField(default=0)
    first_token_ms = models.FloatField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Calls made to providers.")
    saved_cost = models.DecimalField(
        max_digits=19, decimal_places=9, default=0, help_text="US dollars that a cached or replayed answer spared."
    )
    count = models.PositiveIntegerField(default=1, help_text="Requests that this row stands for: many if refused.")

    class Meta:
        ordering = ["-id"]
        permissions = [("export_requestrecord", "Can export request records")]
        indexes = [
            models.Index(fields=["account_id", "-id"], name="record_account"),
            models.Index(fields=["key_id", "-id"], name="record_key"),
            models.Index(fields=["account_id", "admitted_at"], name="record_account_month"),
            models.Index(fields=["key_id", "admitted_at"], name="record_key_month"),
            models.Index(fields=["label"], name="record_label"),
        ]

    def __str__(self) -> str:
        return str(self.id)
