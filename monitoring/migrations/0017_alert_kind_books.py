from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0016_no_order_by_id"),
    ]

    operations = [
        migrations.AlterField(
            model_name="alert",
            name="kind",
            field=models.CharField(
                choices=[
                    ("budget", "Budget"),
                    ("errors", "error rate"),
                    ("provider", "Provider"),
                    ("ingest", "ingest lag"),
                    ("dependency", "Dependency"),
                    ("price", "missing price"),
                    ("books", "rollups or ledgers"),
                    ("test", "Test"),
                ],
                max_length=20,
            ),
        ),
    ]
