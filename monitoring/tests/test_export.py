"""Exports: what the files hold, who may take them, and that memory does not grow with the table."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.http import StreamingHttpResponse
from django.test import Client

from accounts.models import AuditEntry
from accounts.tests.factories import Cast, logged_in, make_staff
from monitoring import export
from monitoring.export import COLUMNS, Format, encoded, plain
from monitoring.models import RequestRecord
from monitoring.recorder import write_records
from monitoring.tests.samples import a_record, now_micros, recorded

LOG = "/admin/monitoring/requestrecord/"


def in_utc(hour: int) -> datetime:
    """Return a moment of 24 November 2026."""
    return datetime(2026, 11, 24, hour, tzinfo=UTC)


class TestEncoding:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (datetime(2026, 11, 24, 20, 1, 2, 345, tzinfo=timezone(timedelta(hours=1))), "2026-11-24T19:01:02.000345Z"),
            (Decimal("0E-9"), "0.000000000"),
            (Decimal("1E+3"), "1000"),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (None, None),
            (1.5, 1.5),
            (True, True),
        ],
    )
    def test_it_writes_moments_in_utc_and_money_as_text(self, value: Any, text: Any) -> None:
        assert plain(value) == text

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\uff1d"])
    def test_it_makes_no_formula_of_a_text_in_csv(self, start: str) -> None:
        text = f'{start}HYPERLINK("https://evil.example";"x"),a'
        _, written = csv.reader(io.StringIO(b"".join(encoded(["key"], [[(text,)]], Format.CSV)).decode(), newline=""))
        assert written == [f"'{text}"]
        line = json.loads(b"".join(encoded(["key"], [[(text,)]], Format.JSONL)))
        assert line == {"key": text}

    def test_it_leaves_numbers_numbers(self) -> None:
        chunks = encoded(["a", "b", "c", "d"], [[(-1, True, None, 'say "hi", you\n')]], Format.CSV)
        assert list(csv.reader(io.StringIO(b"".join(chunks).decode(), newline="")))[1] == [
            "-1",
            "true",
            "",
            'say "hi", you\n',
        ]

    def test_it_packs_what_gzip_unpacks(self) -> None:
        batches = [[("a" * 1000,)], [], [("b" * 100_000,)]]
        packed, plainly = (b"".join(encoded(["c"], batches, Format.CSV, is_packed=way)) for way in (True, False))
        assert gzip.decompress(packed) == plainly


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few records make several batches."""
    monkeypatch.setattr(export, "BATCH", 7)


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return what runs export_log with these arguments, and reads the JSON Lines that it wrote."""

    def export(*arguments: str) -> list[dict[str, Any]]:
        file = tmp_path / "log.jsonl"
        call_command("export_log", "--format", "jsonl", "--output", str(file), *arguments, stderr=io.StringIO())
        assert not Path(f"{file}.partial").exists()
        return [json.loads(line) for line in file.read_text().splitlines()]

    return export


Exported = Callable[..., list[dict[str, Any]]]


@pytest.mark.django_db
class TestCommand:
    def test_it_writes_every_field_of_a_record(self, cast: Cast, exported: Exported) -> None:
        sent = recorded(cast.owner, cost=25_000, saved_cost=1, first_token_ms=3.5, admitted_at=1_795_550_400_000_001)
        (line,) = exported()
        record = RequestRecord.objects.get()
        assert tuple(line) == COLUMNS
        assert (line["id"], line["admitted_at"]) == (str(record.pk), "2026-11-24T20:00:00.000001Z")
        assert (line["cost"], line["saved_cost"]) == ("0.000025000", "0.000000001")
        assert (line["account"], line["key"], line["first_token_ms"]) == ("acme", "owner", 3.5)
        assert {name: line[name] for name in ("model", "endpoint", "status", "attempts", "label")} == {
            name: getattr(sent, name) for name in ("model", "endpoint", "status", "attempts", "label")
        }
        fields = {field.attname for field in RequestRecord._meta.concrete_fields}
        assert set(export.FIELDS) >= fields - {"revision"}

    def test_it_writes_all_batches_once_and_in_order(self, cast: Cast, exported: Exported, small_batches: None) -> None:
        write_records([a_record(cast.owner, label=f"n{number}") for number in range(35)])
        assert [line["label"] for line in exported()] == [f"n{number}" for number in range(35)]

    def test_it_leaves_out_what_comes_in_meanwhile(self, cast: Cast, small_batches: None) -> None:
        write_records([a_record(cast.owner) for _ in range(20)])
        rows = 0
        for batch in export.record_batches(RequestRecord.objects.all()):
            recorded(cast.owner)
            rows += len(batch)
        assert rows == 20

    def test_it_writes_what_was_asked_for(self, cast: Cast, exported: Exported) -> None:
        recorded(cast.owner, label="a", model="small")
        recorded(cast.colleague, label="b", endpoint="summarize")
        recorded(cast.stranger, label="c")
        moment = datetime.now(UTC)

        def labels(*arguments: str) -> list[str]:
            return [line["label"] for line in exported(*arguments)]

        assert labels("--account", "acme") == ["a", "b"]
        assert labels("--account", "acme", "--key", "colleague") == ["b"]
        assert labels("--model", "small") == ["a"]
        assert labels("--endpoint", "summarize") == ["b"]
        assert labels("--from", (moment - timedelta(minutes=1)).isoformat()) == ["a", "b", "c"]
        assert labels("--from", (moment + timedelta(minutes=1)).isoformat()) == []
        assert labels("--to", (moment - timedelta(minutes=1)).isoformat()) == []

    def test_it_writes_csv_to_standard_output(self, cast: Cast, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        recorded(cast.owner, key_name="=cmd|'/c calc'!A0")
        call_command("export_log")
        written = capfdbinary.readouterr()
        head, row = csv.reader(io.StringIO(written.out.decode(), newline=""))
        assert tuple(head) == COLUMNS
        assert row[COLUMNS.index("key")] == "'=cmd|'/c calc'!A0"
        assert b"Exported 1 request records." in written.err

    def test_it_packs_a_file_whose_name_says_so_and_says_in_the_audit_log_what_was_taken(
        self, cast: Cast, tmp_path: Path
    ) -> None:
        recorded(cast.owner)
        output = str(tmp_path / "log.csv.gz")
        span = ("--account", "acme", "--from", "2026-11-01")
        call_command("export_log", "--output", output, *span, stderr=io.StringIO())
        assert gzip.decompress(Path(output).read_bytes()).count(b"\r\n") == 2
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action, entry.target) == ("command:export_log", "exported", "request records")
        assert (entry.after["account"], entry.after["begin"]) == ("acme", "2026-11-01 00:00:00+00:00")

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--account", "nobody"], "No account is named nobody"),
            (["--key", "owner"], "--key needs --account"),
            (["--account", "acme", "--key", "none"], "has no key named none"),
            (["--from", "yesterday"], "yesterday is not a date or time"),
            (["--from", "2026-11-02", "--to", "2026-11-01"], "--from must be before --to"),
            (["--output", "/nowhere/log.csv"], "can't be written"),
        ],
    )
    def test_it_refuses_what_it_can_t_do(self, cast: Cast, arguments: list[str], told: str) -> None:
        with pytest.raises(CommandError, match=told):
            call_command("export_log", *arguments, stderr=io.StringIO())


def body_of(response: Any) -> bytes:
    """Read a streamed answer."""
    assert isinstance(response, StreamingHttpResponse), response.status_code
    assert not response.is_async
    return b"".join(response)


@pytest.mark.django_db
class TestAdmin:
    def test_it_gives_what_is_listed_on_all_pages(self, site: Client, cast: Cast, small_batches: None) -> None:
        write_records([a_record(cast.owner, label=f"n{number}") for number in range(60)])
        recorded(cast.stranger, label="another")
        second_page = site.get(f"{LOG}?account=acme").context["cl"].older_url
        response = site.get(f"{LOG}export/{second_page}&format=jsonl")
        lines = [json.loads(line) for line in body_of(response).splitlines()]
        assert [line["label"] for line in lines] == [f"n{number}" for number in range(60)]
        assert response["Content-Disposition"].startswith('attachment; filename="requestrecords-')
        assert "no-store" in response["Cache-Control"]

    def test_it_links_to_the_export_of_what_is_shown(self, site: Client, cast: Cast) -> None:
        page = site.get(f"{LOG}?account=acme&status=ok").content.decode()
        assert f'href="{LOG}export/?account=acme&amp;status=ok&amp;format=csv"' in page
        assert f'href="{LOG}export/?&amp;format=csv"' in site.get(LOG).content.decode()

    def test_it_leaves_an_entry_with_the_filters(self, site: Client, cast: Cast) -> None:
        recorded(cast.owner, label="wanted")
        recorded(cast.owner, label="another")
        response = site.get(f"{LOG}export/?account=acme%00&q=want%00ed&format=jsonl&gzip=1")
        assert response["Content-Type"] == "application/gzip"
        lines = gzip.decompress(body_of(response)).splitlines()
        assert [json.loads(line)["label"] for line in lines] == ["wanted"]
        entry = AuditEntry.objects.latest("pk")
        assert (entry.actor, entry.action) == ("admin:root", "exported")
        assert entry.after == {"format": "jsonl", "filters": {"account": "acme", "q": "wanted"}, "gzip": True}

    @pytest.mark.parametrize("query", ["format=xml", "from=nonsense", "nothing=1"])
    def test_it_goes_back_to_the_list_for_what_it_can_t_give(self, site: Client, query: str) -> None:
        response = site.get(f"{LOG}export/?{query}")
        assert (response.status_code, response["Location"]) == (302, "../?e=1")
        assert not AuditEntry.objects.filter(action="exported").exists()

    def test_it_gives_nothing_without_the_permission(self, cast: Cast) -> None:
        for name, verbs, status in (
            ("looker", ["view"], 403),
            ("blind", ["export"], 403),
            ("both", ["view", "export"], 200),
        ):
            client = logged_in(make_staff(*(f"monitoring.{verb}_requestrecord" for verb in verbs), name=name))
            assert client.get(f"{LOG}export/").status_code == status
            assert ("Export all" in client.get(LOG).content.decode()) is (status == 200)
        assert Client().get(f"{LOG}export/").status_code == 302


def peak_of_export() -> int:
    """Return the most memory (bytes) that an export takes, of the rows alone."""
    tracemalloc.start()
    try:
        records = export.record_batches(RequestRecord.objects.all())
        for _ in encoded(COLUMNS, records, Format.CSV, is_packed=True):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.django_db
def test_it_takes_no_more_memory_for_more_rows(cast: Cast) -> None:
    write_records([a_record(cast.owner) for _ in range(1_000)])
    few = peak_of_export()
    write_records([a_record(cast.owner, admitted_at=now_micros()) for _ in range(6_000)])
    many = peak_of_export()
    assert many < few * 1.5
    assert many < 10 * 2**20
