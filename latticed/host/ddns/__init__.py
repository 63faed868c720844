"""ddns.*: DNS records that are kept up to date for plugins, at Cloudflare or by dynamic updates (RFC 2136).

Connects to nothing but through `host.egress`; secrets come from `host.secret`, of those bound to the plugin.
"""
