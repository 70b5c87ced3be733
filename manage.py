#!/usr/bin/env python
"""Run administrative tasks of AI API: `python manage.py help` lists them."""

import os
import sys


def main() -> None:
    """Run the command of sys.argv; wrong configuration ends it with one line that names the variable and the mend."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")
    from django.core.management import execute_from_command_line

    from aiapi.env import ConfigurationError

    try:
        import aiapi.settings  # noqa: F401  (read here so that a mistake in it is one line, not a traceback)
    except ConfigurationError as error:
        sys.exit(f"configuration: {error}")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
