"""Outgoing connections: every one that latticed opens, for a plugin or for its own services, is made here.

`guard` decides whether a target may be reached and connects to an address that it has checked; `client` does HTTP over
it. Nothing here knows what a plugin is: callers pass `EgressRights`. Proxies that the environment names are not used,
and no name is looked up twice for one connection.
"""
