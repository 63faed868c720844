"""What runs inside the sandbox of a wasm plugin: the compiler that never runs anything, and the host of one module.

Two programs of the daemon's own Python, started confined by `runners.wasm`, each with one JSON object of orders. This
room knows the standard library and wasmtime, nothing else of latticed; the daemon never imports it. What it says of a
failure goes to descriptor STATUS, and is read with suspicion.
"""
