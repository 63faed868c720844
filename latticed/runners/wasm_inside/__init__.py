"""What runs inside the sandbox of a wasm plugin: the compiler, which never runs anything, and the host of one module.

Two programs for the daemon's Python, started confined by `runners.wasm`, each with one JSON object of orders as its
argument. This package imports the standard library and wasmtime only; the daemon never imports it. Failures are
reported on descriptor STATUS, which the daemon does not trust: a module may have taken over the process.
"""
