"""tunnel.*: cloudflared makes origins that the operator bound to the plugin reachable under public names.

Opens no connection itself, except to cloudflared's readiness page on loopback.
"""
