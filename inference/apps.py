"""The inference app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """The app by its name."""

    name = "inference"
