"""latticectl: one verb per file, a client for the control socket, and rendering.

Every start pays for its imports, so `main` loads only the module of the verb that was asked for, and online verbs
import nothing beyond the standard library, `wire`, `settings`, `model` and `kit`. Offline verbs (verify, sign, key,
new, trust) load `bundle` and `trust` when they run. This room never decides anything for the daemon, never imports
its rooms, and never prints what a stranger wrote without escaping it.
"""
