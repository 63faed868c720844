"""The control API on the unix socket: one table of routes with the scope each needs, and their handlers.

A handler checks who asks, decodes strictly, calls one other package, and encodes the answer. The package never judges a
bundle, never changes a record by itself and never talks to a plugin.
"""
