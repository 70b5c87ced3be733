"""The framework alone: one Django REST framework view that checks a message and answers JSON, and nothing else.

The measure of what the platform costs; served by the same gunicorn worker: `gunicorn --chdir bench bare:application`.
"""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    SECRET_KEY="of-the-benchmark-only",  # noqa: S106
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["rest_framework"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],  # for Content-Length
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import serializers  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


class Body(serializers.Serializer[Any]):
    """What /chat takes."""

    message = serializers.CharField(max_length=1000)
    temperature = serializers.FloatField(min_value=0, max_value=2, default=0.7)


class BareView(APIView):
    """Answers what it was sent, in the shape of /chat."""

    def post(self, request: Request) -> Response:
        """Validate and answer."""
        body = Body(data=request.data)
        body.is_valid(raise_exception=True)
        text = body.validated_data["message"]
        return Response({"response": text, "tokens_used": 36, "cached": False, "request_id": "0" * 36})


urlpatterns = [path("chat", BareView.as_view())]
application = get_wsgi_application()
