"""Metrics as Prometheus would read them, for tests that look at some."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Read = Callable[[], str]


def samples(text: str) -> list[Sample]:
    """Parse the text format into its samples."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(text: str, name: str, **labels: str) -> float:
    """Add up the samples of a name that have these labels, among others; 0 where there is none."""
    return sum(
        sample.value for sample in samples(text) if sample.name == name and labels.items() <= sample.labels.items()
    )


class Growth:
    """How much a metric has grown since this was made."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._before = read()

    def __call__(self, name: str, **labels: str) -> float:
        """Return by how much the samples of a name with these labels have grown, all together."""
        return round(value(self._read(), name, **labels) - value(self._before, name, **labels), 9)
