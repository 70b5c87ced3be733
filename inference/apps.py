"""Django's configuration of the inference app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Registers the readers of model names that accounts, a lower layer, can't import."""

    name = "inference"

    def ready(self) -> None:
        """Register the readers of model names with accounts."""
        from accounts.model_names import install_reader, install_unpriced_reader
        from inference.catalog import unpriced_names
        from inference.selectors import public_name_of

        install_reader(public_name_of)
        install_unpriced_reader(unpriced_names)
