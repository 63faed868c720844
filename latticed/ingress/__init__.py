"""HTTP listeners for plugins' routes and proxied services, and the delivery of queued notifications.

They listen on loopback, and only while a plugin has a route. All input is untrusted: requests are parsed strictly,
bounded in size and time, and never reach the control API. The package knows the table of routes and how to invoke the
plugin that delivers, never other plugins.
"""
