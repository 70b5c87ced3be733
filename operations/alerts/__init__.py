"""Alerts: what is watched, when an incident begins and ends, and who gets a message.

    conditions lists what holds now -> incidents stores each incident once -> deliveries sends messages

The leading `manage.py worker` runs the rounds. Requests and the ingester do not call this package.
"""
