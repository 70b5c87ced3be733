"""`manage.py reconcile`: a provider's exported usage beside the records, and what explains a difference."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from accounts.models import AuditEntry
from accounts.tests.factories import make_key
from monitoring.tests.samples import recorded

pytestmark = pytest.mark.django_db
DAY = datetime(2026, 11, 3, 12, tzinfo=UTC)
#: The same usage in each of the formats: of one model 100 + 30 input tokens and 20 output tokens on 3 November.
OPENAI = {
    "object": "page",
    "data": [
        {
            "object": "bucket",
            "start_time": 1793664000,
            "end_time": 1793750400,
            "results": [
                {"model": "gpt-4.1-2025-04-14", "input_tokens": 100, "output_tokens": 15, "num_model_requests": 1},
                {"model": "gpt-4.1-2025-04-14", "input_tokens": 30, "output_tokens": 5, "num_model_requests": 1},
            ],
        }
    ],
}
CSV = "start_time,model,num_model_requests,input_tokens,output_tokens\n1793664000,gpt-4.1,2,130,20\n"
ANTHROPIC = {
    "data": [
        {
            "starting_at": "2026-11-03T00:00:00Z",
            "results": [
                {
                    "model": "gpt-4.1",
                    "uncached_input_tokens": 60,
                    "cache_read_input_tokens": 40,
                    "cache_creation": {"ephemeral_1h_input_tokens": 10, "ephemeral_5m_input_tokens": 20},
                    "output_tokens": 20,
                }
            ],
        }
    ]
}
CONSOLE = (
    "\ufeffusage_date_utc,model_version,api_key,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
    "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens\n"
    "2026-11-03,gpt-4.1,k,60,20,10,40,20\n"
)
FILES = {
    "the API of OpenAI": ("openai", json.dumps(OPENAI)),
    "pages of it": ("openai", json.dumps([OPENAI])),
    "the CSV of OpenAI": ("openai", CSV),
    "the API of Anthropic": ("anthropic", json.dumps(ANTHROPIC)),
    "the CSV of Anthropic": ("anthropic", CONSOLE),
}


def reconcile(tmp_path: Path, kind: str, content: str, **options: Any) -> str:
    """Run the command on a file and return what it prints."""
    path, output = tmp_path / "usage", io.StringIO()
    path.write_text(content)
    call_command("reconcile", kind, str(path), stdout=output, provider="openai", **options)
    return output.getvalue()


def call(**changes: Any) -> str:
    """Record a call of 3 November and return its request's id."""
    fields = {"model": "large", "deployment": "openai/gpt-4.1", "admitted_at": int(DAY.timestamp() * 10**6), **changes}
    return recorded(make_key(), **fields).label


@pytest.mark.parametrize("name", FILES)
def test_it_agrees_where_the_tokens_do(tmp_path: Path, name: str) -> None:
    call(input_tokens=100, output_tokens=15, usage_source="provider")
    call(input_tokens=30, output_tokens=5, usage_source="provider")
    call(input_tokens=30, output_tokens=5, usage_source="cache")
    call(input_tokens=30, output_tokens=5, usage_source="provider", deployment="other/gpt-4.1")
    printed = reconcile(tmp_path, *FILES[name])
    assert "0 of 1 lines differ, by +0 tokens in all." in printed
    assert "130 / 130" in printed


def test_it_names_the_records_that_explain_a_difference(tmp_path: Path, admin_client: Client) -> None:
    exact = call(input_tokens=100, output_tokens=15, usage_source="provider", label="exact")
    bound = call(input_tokens=500, output_tokens=80, usage_source="bound", label="bound")
    retried = call(input_tokens=1, output_tokens=1, usage_source="provider", attempts=2, label="retried")
    late = call(deployment="openai/gpt-5", input_tokens=7, output_tokens=0, usage_source="provider", label="late")
    printed = reconcile(tmp_path, "openai", CSV)
    assert "2 of 2 lines differ, by +554 tokens in all." in printed
    assert f"{bound}: charged its bound" in printed
    assert f"{retried}: 2 attempts, perhaps elsewhere" in printed
    assert f"{exact}:" not in printed
    assert f"{late}:" not in printed
    assert "gpt-5 " in printed
    entry = AuditEntry.objects.get(target_type="provider usage")
    assert (entry.actor, entry.after["difference"]) == ("command:reconcile", 554)
    query = "?period=custom&first=2026-11-01&last=2026-11-30"
    page = admin_client.get(f"/admin/monitoring/requestrecord/usage/{query}")
    assert "2 of 2 days and models differ from the bill of openai" in page.content.decode()
    earlier = admin_client.get("/admin/monitoring/requestrecord/usage/?period=custom&first=2026-10-01&last=2026-10-31")
    assert "bill of openai" not in earlier.content.decode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "It has no usage."),
        ("{}", "neither JSON of a usage API nor CSV"),
        ('{"data": [{"results": 5}]}', "neither JSON of a usage API nor CSV"),
        ("day,spent\n1,2\n", "Row 1 lacks a day, a model and tokens"),
        (CSV.replace("130", "many"), "Row 1 has a figure or a day that can't be read"),
        (CSV.replace("1793664000", "yesterday"), "Row 1 has a figure or a day that can't be read"),
        (CSV.replace("130", "-1"), "Row 1 has a figure or a day that can't be read"),
        (CSV, "No records of calls to the provider 'openai' on these days"),
    ],
)
def test_it_says_what_is_wrong_with_a_file_and_keeps_nothing(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(CommandError, match=told.replace("(", r"\(")):
        reconcile(tmp_path, "openai", content)
    assert not AuditEntry.objects.filter(target_type="provider usage").exists()
