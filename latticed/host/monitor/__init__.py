"""monitor.*: targets that are watched for plugins: what to check, when, how, and what follows from a result.

Connects to nothing but through `host.egress`; writes only its own rows of the ledger and notifications.
"""
