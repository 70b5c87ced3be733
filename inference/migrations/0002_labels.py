from django.db import migrations, models

import inference.validators


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0001_initial"),
    ]

    operations = [
        migrations.AlterField(
            model_name="deployment",
            name="is_enabled",
            field=models.BooleanField(default=True, verbose_name="enabled"),
        ),
        migrations.AlterField(
            model_name="deployment",
            name="upstream_name",
            field=models.CharField(
                help_text="The provider's name for the model.", max_length=200, verbose_name="provider's name"
            ),
        ),
        migrations.AlterField(
            model_name="model",
            name="is_default",
            field=models.BooleanField(
                default=False,
                help_text="Used for requests that name no model. It replaces OPENAI_MODEL.",
                verbose_name="default",
            ),
        ),
        migrations.AlterField(
            model_name="model",
            name="is_enabled",
            field=models.BooleanField(
                default=True, help_text="Off: callers get 404 immediately.", verbose_name="enabled"
            ),
        ),
        migrations.AlterField(
            model_name="provider",
            name="api_key_variable",
            field=models.CharField(
                blank=True,
                help_text="Environment variable that holds the secret; must end in _API_KEY. Empty: no secret is sent.",
                max_length=100,
                validators=[inference.validators.validate_api_key_variable],
                verbose_name="variable of the secret",
            ),
        ),
        migrations.AlterField(
            model_name="provider",
            name="api_version",
            field=models.CharField(
                blank=True,
                help_text="Azure only: the api-version parameter, such as 2024-10-21; v1 or preview for its v1 API.",
                max_length=40,
                verbose_name="API version",
            ),
        ),
        migrations.AlterField(
            model_name="provider",
            name="base_url",
            field=models.CharField(
                help_text="With /v1, such as https://api.openai.com/v1. For Azure: the URL of the resource, such as https://blue.openai.azure.com.",
                max_length=500,
                verbose_name="base URL",
            ),
        ),
        migrations.AlterField(
            model_name="provider",
            name="is_enabled",
            field=models.BooleanField(
                default=True, help_text="Off: calls to this provider stop immediately.", verbose_name="enabled"
            ),
        ),
    ]
