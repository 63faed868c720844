"""What comes from outside to a plugin: HTTP requests on its routes.

Listens on loopback, and only while a plugin has a route. Everything that arrives is a stranger's: nothing of the
control API can be reached here, no request is taken on trust, none may keep anything waiting. This room knows no
plugin, only the table of routes.
"""
