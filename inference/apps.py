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
        from inference.standing import deployment_states, failing_sign
        from inference.unpriced import missing_prices
        from inference.upstream.alerts import failing_deployments
        from inference.upstream.health import llm_health
        from monitoring.alerts.conditions import register_source
        from monitoring.dashboard.providers import register_deployment_states
        from monitoring.dashboard.signs import register_sign
        from monitoring.health import register_check
        from monitoring.scrape import register_deployments

        register_check("llm", llm_health)
        register_source("breakers", failing_deployments)
        register_source("prices", missing_prices)
        register_deployments(deployment_names)
        register_deployment_states(deployment_states)
        register_sign(failing_sign)
        install_reader(public_name_of)
        install_unpriced_reader(unpriced_names)
