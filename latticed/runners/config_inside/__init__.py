"""What runs in the child that checks one configuration: the standard library and jsonschema_rs.

A program for the daemon's Python, started confined by `runners.config_checker`; the daemon never imports it. The
schema comes from a plugin's author, who is not trusted: checking a document against it may take any time and memory,
which the daemon bounds.
"""
