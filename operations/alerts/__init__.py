"""Alerts: what is watched, when an incident begins and ends, and who gets a message.

    conditions and budgets list what holds now -> incidents stores each incident once -> deliveries sends messages

`manage.py watch` runs the rounds; several processes may run it. Requests and the ingester don't call this package.
"""
