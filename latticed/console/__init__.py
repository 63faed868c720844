"""The console: pages that `latticectl ui` serves to a browser, with the rights of whoever started it.

It has no way into the daemon of its own: it asks what latticectl asks, over the same socket. What it may ask is one
fixed table (`forwarded`), and without --act that has reading routes only. It must not give consent to host risk,
approve anything, show a secret or a configuration, listen beyond loopback, or load anything from elsewhere into a page.
"""
