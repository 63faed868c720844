"""The plugins that latticed brings itself: manifest, intent model, pure check and render, and an async plugin each.

A package for each below this one; `registry` names them. A built-in is judged, granted and recorded like any other
plugin and reaches the host by its Gate alone, though it runs in the daemon's process (`runners.builtin`). The package
imports `sdk` and `model` only, and must not open a file, start a program or speak to the network: the host does that.
"""
