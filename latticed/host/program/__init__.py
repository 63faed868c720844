"""service.*: long-lived programs of the operator's list that plugins declare, kept running and confined.

In code they are programs; `service` is what the host calls and the operator's settings say.
"""
