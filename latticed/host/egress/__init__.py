"""The way out: every connection that latticed opens for a plugin, and for its own services, goes through here.

`guard` judges a target and dials the address that was judged; `client` speaks HTTP through it. Nothing here knows what
a plugin is: callers bring `EgressRights`. No proxy of the environment is used, no address is looked up twice.
"""
