"""route.*: which plugin answers which HTTP path, and with what: a template, an action, or a proxied upstream.

Listens nowhere: `latticed.ingress` does, and asks the tables of this package.
"""
