"""What comes from outside to a plugin: HTTP requests on its routes.

It listens on loopback, and only while a plugin has a route. Nothing of the control API can be reached here; a request
must not be trusted, and must not keep other requests waiting. The package knows the table of routes, never plugins.
"""
