"""The inference app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Tell monitoring how to ask whether the model is well."""

    name = "inference"

    def ready(self) -> None:
        """Register the health check of the model, its deployments, and what knows the names of models."""
        from accounts.model_names import install_reader, install_unpriced_reader
        from inference.catalog import deployment_names, unpriced_names
        from inference.selectors import public_name_of
        from operations.alerts.conditions import failing_deployments, missing_prices, register_source
        from operations.dashboard.data import register_sign
        from operations.deployments import deployment_states, failing_sign, register_deployment_states
        from operations.health import llm_health, register_check
        from operations.scrape import register_deployments

        register_check("llm", llm_health)
        register_source("breakers", failing_deployments)
        register_source("prices", missing_prices)
        register_deployments(deployment_names)
        register_deployment_states(deployment_states)
        register_sign(failing_sign)
        install_reader(public_name_of)
        install_unpriced_reader(unpriced_names)
