"""latticectl: one verb per file, and rendering.

Each start pays for its imports: `main` loads only the module of the verb that was asked for; online verbs import the
standard library, `client`, `wire`, `settings`, `model` and `kit`; offline verbs (verify, sign, key, new, trust) load
`bundle` and `trust` when they run. The package never decides anything for the daemon, never imports the daemon's
packages, and never prints text from outside without escaping it.
"""
