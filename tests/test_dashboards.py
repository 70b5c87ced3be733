"""Alerts, dashboard and documentation name metrics and labels that exist: those that /metrics really writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from core.telemetry import metrics
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import Api
from monitoring.metrics import outcome_label
from tests.servers import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "ai-api.json").read_text())
#: What Prometheus itself adds.
ITS_OWN = {"up": {"job", "instance"}}
ITS_LABELS = {"job", "instance"}
SELECTED = re.compile(r"\b(up|aiapi_\w+)\b(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
WORDS = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
DOCUMENTED = re.compile(r"^\| `(aiapi_\w+)` \| (\w+) \| (.*) \| (.+) \|$", re.MULTILINE)


def rules() -> list[Any]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def panels() -> list[Any]:
    """List the dashboard's panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield where an expression stands, and the expression."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


@pytest.fixture
def written(api: Api, upstream: FakeUpstream) -> dict[str, set[str]]:
    """Return the names that /metrics writes, each with its labels, a histogram's by its three series."""
    api.chat("hello")
    text = Client().get("/metrics").content.decode()
    labels = {each._name: set(each._labelnames) for each in metrics.REGISTRY._names_to_collectors.values()}  # type: ignore[attr-defined]
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        own = {name for sample in family.samples for name in sample.labels if name != "le"}
        known = labels.get(family.name, own) | ITS_LABELS
        assert own <= known
        if family.type == "histogram":
            names |= {
                f"{family.name}_bucket": known | {"le"},
                f"{family.name}_sum": known,
                f"{family.name}_count": known,
            }
        else:
            names[f"{family.name}_total" if family.type == "counter" else family.name] = known
    return names | ITS_OWN


@pytest.mark.parametrize(("place", "query"), list(queries()), ids=lambda text: text[:30])
def test_it_names_only_metrics_and_labels_that_exist(written: dict[str, set[str]], place: str, query: str) -> None:
    found = SELECTED.findall(query)
    assert found, "a query without a metric"
    for name, selector in found:
        assert name in written
        assert set(WORDS.findall(selector)) <= written[name], name
    grouped = {label.strip() for group in GROUPED.findall(query) for label in group.split(",")}
    assert grouped <= set.union(*(written[name] for name, _ in found))


def test_it_compares_with_outcomes_that_there_are() -> None:
    outcomes = {outcome_label(status) for status in (200, 400, 429, 499, 500)}
    named = {
        word
        for _, query in queries()
        for values in re.findall(r'aiapi_requests_total\{[^}]*outcome=~?"([^"]*)"', query)
        for word in values.split("|")
    }
    assert named
    assert named <= outcomes


def test_it_says_of_each_alert_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) > 10
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_it_alerts_on_all_that_can_go_wrong_for_long() -> None:
    watched = {name for rule in rules() for name, _ in SELECTED.findall(rule["expr"])}
    assert watched >= {
        "up",
        "aiapi_requests_total",
        "aiapi_http_responses_total",
        "aiapi_request_seconds_bucket",
        "aiapi_first_token_seconds_bucket",
        "aiapi_upstream_attempts_total",
        "aiapi_breaker_state",
        "aiapi_upstream_queue",
        "aiapi_requests_shed_total",
        "aiapi_ingest_lag_seconds",
        "aiapi_ingest_queue_records",
        "aiapi_state_store_up",
        "aiapi_limits_refused_total",
    }


def test_it_shows_every_metric_on_the_dashboard(written: dict[str, set[str]]) -> None:
    shown = {name for _, query in queries() for name, _ in SELECTED.findall(query)}
    wanted = {name for name in written if not name.endswith(("_sum", "_count"))}
    assert wanted - shown == set()


def test_it_lays_the_dashboard_s_panels_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels())


def test_it_documents_every_metric(written: dict[str, set[str]]) -> None:
    text = Client().get("/metrics").content.decode()
    expected = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        series = f"{family.name}_count" if family.type == "histogram" else name
        labels = ", ".join(f"`{label}`" for label in sorted(written[series] - ITS_LABELS))
        expected[name] = (family.type, labels, family.documentation)
    told = DOCUMENTED.findall((ROOT / "docs" / "operations.md").read_text())
    assert {name: (kind, labels, text) for name, kind, labels, text in told} == expected


def test_it_configures_a_scrape_of_what_is_there() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    (scrape,) = config["scrape_configs"]
    assert (scrape["job_name"], scrape["metrics_path"]) == ("ai-api", "/metrics")
    assert all((PROMETHEUS / name).exists() for name in config["rule_files"])
    monitor = yaml.safe_load((PROMETHEUS / "servicemonitor.yaml").read_text())
    service = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "service.yaml").read_text())
    secret = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "secret.example.yaml").read_text())
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["port"]) == ("/metrics", service["spec"]["ports"][0]["name"])
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["name"] == secret["metadata"]["name"]
    assert credentials["key"] in secret["stringData"]
