from django.db import migrations

OLD = (
    "record_account",
    "record_key",
    "record_account_month",
    "record_key_month",
    "record_model",
    "record_status",
    "record_failed",
)


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0015_records_by_time"),
    ]

    operations = [migrations.RemoveIndex(model_name="requestrecord", name=name) for name in OLD]
