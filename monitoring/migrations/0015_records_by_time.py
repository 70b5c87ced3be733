from django.db import migrations, models


class AddIndexBeside(migrations.AddIndex):
    """Make an index, on PostgreSQL while others write; one that was broken off before is made anew."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        beside = {"concurrently": True} if schema_editor.connection.vendor == "postgresql" else {}
        how = "CONCURRENTLY " if beside else ""
        schema_editor.execute(f"DROP INDEX {how}IF EXISTS {schema_editor.quote_name(self.index.name)}")
        schema_editor.add_index(to_state.apps.get_model(app_label, self.model_name), self.index, **beside)


def by_time(name, *columns, **options):
    index = models.Index(fields=[*columns, "admitted_at", "id"], name=name, **options)
    return AddIndexBeside(model_name="requestrecord", index=index)


class Migration(migrations.Migration):
    """Records in order of admission. The indexes by id go with the next migration, when these are there."""

    atomic = False

    dependencies = [
        ("monitoring", "0014_alert_kind_price"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="requestrecord",
            options={
                "ordering": ["-admitted_at", "-id"],
                "permissions": [("export_requestrecord", "Can export request records")],
            },
        ),
        by_time("record_by_time"),
        by_time("record_account_by_time", "account_id"),
        by_time("record_key_by_time", "key_id"),
        by_time("record_model_by_time", "model"),
        by_time("record_status_by_time", "status", condition=models.Q(("status__gte", 400))),
        by_time("record_failed_by_time", condition=models.Q(("status__gte", 500))),
    ]
