"""Alerts: what is watched, when an episode begins and ends, and how somebody is told.

    conditions and budgets say what holds now -> episodes keep each once in the database -> deliveries tell of it

`manage.py watch` goes round; several may run. Nothing here is called by a request or by the ingester.
"""
