"""Secrets: values that operators keep here and plugins only name, as `${secret:NAME}`.

A value leaves this package only for a call of a plugin that it is bound to (`references.PluginSecrets`), and is
redacted from answers and errors.
"""
