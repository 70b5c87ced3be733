"""Django's configuration of the inference app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """The app of model calls and of the catalog of models."""

    name = "inference"
    verbose_name = "Models and providers"
