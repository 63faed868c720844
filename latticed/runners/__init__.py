"""How plugins are run: one file per runner, and the contract between a runner and the supervisor.

A runner gets a verified plugin and a Gate, and returns a running instance. It never decides whether a plugin may run,
never restarts anything, and gives its plugin nothing but the Gate.
"""
