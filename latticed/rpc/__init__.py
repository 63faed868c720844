"""The control API on the unix socket: one table of routes with the scope each needs, and their handlers.

This room translates and nothing else: it decides who may ask, decodes strictly, calls one room, encodes the answer.
It never judges a bundle, changes a record by itself or talks to a plugin.
"""
