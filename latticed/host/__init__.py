"""Host services: what a plugin may ask of the host, one service per file.

Each service declares its calls (name, typed parameters, handler); the capability comes from `model.hostcall`.
A service trusts that the broker has judged the call: it never checks capabilities and never writes audit events.
"""
