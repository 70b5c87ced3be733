"""Invitations of staff: a link to choose a password, sent by e-mail or copied by whoever invites.

The link has Django's token for resetting a password. It works for PASSWORD_RESET_TIMEOUT, until the password is set.
Who may change a user's password may invite them, and both are in the audit log.
"""

from __future__ import annotations

from smtplib import SMTPException
from typing import Any

import structlog
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.forms import SetPasswordForm
from django.contrib.auth.models import User
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.contrib.auth.views import PasswordResetConfirmView
from django.core.mail import send_mail
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse, reverse_lazy
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts.admin.base import Confirmation, ModelAdmin, actor_of, ask, change_url, is_confirmed, page
from accounts.audit import audit_record
from core.formats import duration

log = structlog.get_logger(__name__)


class InvitationTokens(PasswordResetTokenGenerator):
    """Django's tokens; a change of the user's powers ends them, so that no early link becomes a strong one."""

    def _make_hash_value(self, user: Any, timestamp: int) -> str:
        powers = [user.is_superuser, sorted(user.get_all_permissions())]
        return f"{super()._make_hash_value(user, timestamp)}{powers}"


tokens = InvitationTokens()


def invitation_page(model_admin: ModelAdmin, request: HttpRequest, user: User) -> HttpResponse:
    """Ask, then send an invitation; show its link if there is no e-mail address, or no e-mail can be sent."""
    is_mailed = bool(settings.EMAIL_URL and user.email)
    lasts = duration(settings.PASSWORD_RESET_TIMEOUT)
    if not is_confirmed(request):
        way = f"{user.email} gets a link" if is_mailed else "You get a link to pass on"
        hint = "give the user an e-mail address" if settings.EMAIL_URL else "set EMAIL_URL"
        question = Confirmation(
            title=f"Invite {user}?",
            consequences=[
                f"{way} to choose a password. It works once, for {lasts}.",
                *([] if is_mailed else [f"To have it sent by e-mail, {hint}."]),
            ],
            submit="Send invitation" if is_mailed else "Create invitation link",
            is_dangerous=False,
            cancel_url=change_url(user),
        )
        return ask(model_admin, request, question)
    audit_record(actor=actor_of(request), action="invited", target=user, after={"email": user.email})
    names = {"uidb64": urlsafe_base64_encode(force_bytes(user.pk)), "token": tokens.make_token(user)}
    url = request.build_absolute_uri(reverse("admin:invitation", kwargs=names))
    if is_mailed and _send(user, url, lasts):
        messages.success(request, f"The invitation was sent to {user.email}.")
        return HttpResponseRedirect(change_url(user))
    if is_mailed:
        messages.error(request, "The e-mail could not be sent. Pass on this link instead.")
    context = {"link": url, "lasts": lasts, "user_url": change_url(user)}
    return page(model_admin, request, "admin/auth/user/invitation.html", f"Invitation of {user}", context)


def _send(user: User, url: str, lasts: str) -> bool:
    """Send the link, and return whether the mail server took it."""
    site = settings.UNFOLD["SITE_TITLE"]
    text = (
        f"You are invited to the admin of {site}. Your username is {user.get_username()}.\n\n"
        f"Choose a password: {url}\n\nThe link works once, for {lasts}.\n"
    )
    try:
        send_mail(f"Invitation to {site}", text, settings.DEFAULT_FROM_EMAIL, [user.email])
    except (OSError, SMTPException) as error:
        log.warning("invitation_not_sent", cause=type(error).__name__)
        return False
    return True


class NewPasswordForm(SetPasswordForm):  # type: ignore[type-arg]  # not generic at run time
    """Django's form of a new password, in unfold's look."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("new_password1", "new_password2"):
            self.fields[name].widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})


class InvitationView(PasswordResetConfirmView):
    """The page that an invitation leads to, where the invited user chooses a password."""

    form_class = NewPasswordForm
    token_generator = tokens
    template_name = "admin/auth/user/accept_invitation.html"
    success_url = reverse_lazy("admin:login")
    title = "Choose a password"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add what the admin's templates need."""
        return {**admin.site.each_context(self.request), **super().get_context_data(**kwargs)}

    def form_valid(self, form: Any) -> HttpResponse:
        """Set the password, and write an audit entry."""
        with transaction.atomic():
            response = super().form_valid(form)
            audit_record(actor=f"admin:{form.user}", action="password", target=form.user)
        messages.success(self.request, "Your password is set. You can log in now.")
        return response
