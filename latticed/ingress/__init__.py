"""HTTP listeners for plugins' routes and proxied services.

They listen on loopback, and only while a plugin has a route. All input is untrusted: requests are parsed strictly,
bounded in size and time, and never reach the control API. The package knows the table of routes, never plugins.
"""
