"""The checklist for a new installation: what is set up, and where to do the rest; and sample data, loaded and removed.

Each state is read from the database and the settings. What an operator marks by hand (the backup, which happens
elsewhere, and that the list is not wanted) is kept in a cookie of the browser.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import cast

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.views.decorators.http import require_POST

from accounts.admin.base import Confirmation, ModelAdmin, actor_of, ask, is_confirmed
from accounts.audit import audit_event
from accounts.models import Account, ApiKey
from inference.models import Price, Provider
from inference.selectors import deployments_without_price
from operations.alerts.incidents import is_anybody_notified
from operations.demo.services import demo_accounts

COOKIE, YEAR = "setup", 365 * 24 * 3600
BACKUP, HIDDEN = "backup", "hidden"


@dataclass(frozen=True, slots=True)
class Step:
    """A step: what to do, and where (a URL, or "" if not in the admin). `mark` is sent to mark it by hand."""

    name: str
    hint: str
    url: str
    is_done: bool
    mark: str = ""


def setup_steps(request: HttpRequest, *, has_requests: bool) -> list[Step]:
    """Return the steps; none if all are done, if the list was hidden, or for users who may not add providers."""
    marked = request.COOKIES.get(COOKIE, "").split("+")
    if HIDDEN in marked or not request.user.has_perm("inference.add_provider"):
        return []
    providers = Provider.objects.filter(is_enabled=True)
    is_priced = Price.objects.exists() and not deployments_without_price().exists()
    steps = [
        Step("Provider", "Add a provider", _admin("inference_provider_add"), providers.exists()),
        Step("Price", "Enter what its models cost", _admin("inference_price_changelist"), is_priced),
        Step("Account", "Add an account", _admin("accounts_account_add"), Account.objects.exists()),
        Step("Key", "Create a key", _admin("accounts_apikey_add"), ApiKey.objects.exists()),
        Step("First request", "Try it in the playground", reverse("playground"), has_requests),
        Step("Alerts", "Set up a channel", _admin("monitoring_alert_changelist") + "#channels", is_anybody_notified()),
        Step("HTTPS", "set HTTPS_ONLY (docs/configuration.md)", "", settings.HTTPS_ONLY),
        Step("Backup", "see docs/operations.md, Backups", "", BACKUP in marked, mark=BACKUP),
    ]
    return [] if all(step.is_done for step in steps) else steps


@require_POST
def mark_setup(request: HttpRequest) -> HttpResponseBase:
    """Mark the backup as done, or hide the checklist, in this browser; go back to the dashboard."""
    marked = {*request.COOKIES.get(COOKIE, "").split("+"), request.POST.get("mark", "")} & {BACKUP, HIDDEN}
    response = HttpResponseRedirect(_admin("index"))
    response.set_cookie(
        COOKIE, "+".join(sorted(marked)), max_age=YEAR, path=_admin("index"), samesite="Lax", secure=request.is_secure()
    )
    return response


def sample_data_offer(request: HttpRequest, *, has_requests: bool) -> str:
    """Return what the user is offered to do with sample data: `load`, `remove`, or nothing ("")."""
    if demo_accounts().exists():
        return REMOVE if request.user.has_perms(RIGHTS[REMOVE]) else ""
    return "" if has_requests or settings.IS_PRODUCTION or not request.user.has_perms(RIGHTS[LOAD]) else LOAD


LOAD, REMOVE = "load", "remove"
RIGHTS = {
    LOAD: ("accounts.add_account", "accounts.add_apikey", "inference.add_provider"),
    REMOVE: ("accounts.delete_account", "accounts.delete_apikey", "inference.delete_provider"),
}
CONSEQUENCES = {
    LOAD: "This adds five accounts with keys, models, and some 20,000 requests of two months. It takes about half a "
    "minute. You can remove all of it with one click; real data is not changed.",
    REMOVE: "This deletes the accounts, keys, models and requests of the sample data. Real data is not changed.",
}


@require_POST
def sample_data(request: HttpRequest) -> HttpResponseBase:
    """Load or remove the sample data, after a confirmation; raise PermissionDenied without the rights to do so."""
    action, index = REMOVE if request.POST.get("action") == REMOVE else LOAD, _admin("index")
    if not request.user.has_perms(RIGHTS[action]):
        raise PermissionDenied
    if not is_confirmed(request):
        title = f"{action.capitalize()} sample data"
        hidden = {"action": [action]}
        question = Confirmation(
            f"{title}?", [CONSEQUENCES[action]], title, is_dangerous=action == REMOVE, cancel_url=index, hidden=hidden
        )
        return ask(cast("ModelAdmin", admin.site.get_model_admin(Account)), request, question)
    done = run_demo(action)
    if done.returncode:
        messages.error(request, done.stderr.strip().rpartition("\n")[2].removeprefix("CommandError: "))
    else:
        verb = "loaded" if action == LOAD else "removed"
        audit_event(actor=actor_of(request), action=verb, kind="sample data", details={})
        messages.success(request, done.stdout.partition("\n")[0])
    return HttpResponseRedirect(index)


def run_demo(action: str) -> subprocess.CompletedProcess[str]:
    """Run manage.py demo in a process of its own: for half a minute of work, this one would answer no calls."""
    command = [
        sys.executable,
        str(settings.BASE_DIR / "manage.py"),
        "demo",
        *(["--remove"] if action == REMOVE else []),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _admin(name: str) -> str:
    return reverse(f"admin:{name}")
