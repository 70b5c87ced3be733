"""Calls in flight are in the state store alone."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("accounts", "0011_idempotent_answers")]

    operations = [migrations.DeleteModel(name="OpenReservation")]
