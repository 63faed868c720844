"""monitor.*: targets that are checked for plugins, and alerts when one goes down or comes up.

Connects to nothing but through `host.egress`; writes only its own rows of the ledger and notifications.
"""
