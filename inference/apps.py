"""The inference app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Give accounts what knows the names of models."""

    name = "inference"

    def ready(self) -> None:
        """Install what reads the names of models."""
        from accounts.model_names import install_reader, install_unpriced_reader
        from inference.catalog import unpriced_names
        from inference.selectors import public_name_of

        install_reader(public_name_of)
        install_unpriced_reader(unpriced_names)
