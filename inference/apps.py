"""The inference app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Tell monitoring how to ask whether the model is well."""

    name = "inference"

    def ready(self) -> None:
        """Register the health check of the model."""
        from inference.upstream.health import llm_health
        from monitoring.health import register_check

        register_check("llm", llm_health)
