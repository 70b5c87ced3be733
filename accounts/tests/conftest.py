"""The shared cast, as fixtures."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from accounts.tests.factories import Cast, logged_in, make_admin, make_cast


@pytest.fixture
def cast(db: None) -> Cast:
    """Make everybody whom a test should meet: owner, colleague, stranger, revoked, expired, disabled."""
    return make_cast()


@pytest.fixture
def admin(db: None) -> User:
    """Make a superuser."""
    return make_admin()


@pytest.fixture
def admin_site(admin: User) -> Client:
    """Return a browser that is logged in as the superuser."""
    return logged_in(admin)
