"""Models without a price, as alerts to operators."""

from __future__ import annotations

from collections.abc import Iterator

from inference.selectors import models_without_price
from monitoring.alerts.conditions import Condition
from monitoring.models import Alert

#: What it means for a model, and what to do about it.
CONSEQUENCE = (
    "What calls cost there is unknown, and no budget in money allows them. "
    "Enter a price in the admin, 0 for what is free."
)


def missing_prices() -> Iterator[Condition]:
    """List the models that calls may go to without a price."""
    for model, deployments in models_without_price().items():
        text = f"No price was entered for {deployments}, which serves model {model}. {CONSEQUENCE}"
        yield Condition(Alert.Kind.PRICE, f"price:{model}", f"Model {model} has no price", text)
