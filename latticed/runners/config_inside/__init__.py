"""What runs in the child that checks one configuration: the standard library and jsonschema_rs.

A program for the daemon's Python, started confined by `runners.config_checker`; the daemon never imports it. Schema and
document come from strangers and from an operator: checking them may take any time and memory, which the daemon bounds.
"""
