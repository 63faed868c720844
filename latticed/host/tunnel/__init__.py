"""tunnel.*: cloudflared leads names on the internet to origins that the operator bound to the plugin.

Never opens a connection itself except to the program's own readiness page on loopback.
"""
