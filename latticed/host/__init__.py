"""Host services: what a plugin may ask of the host; a package for each noun, or one file for a small one.

`calls` declares the host calls (name, typed parameters, handler; `model.hostcall` has the capability of each), `spec`
parses what a plugin asks for, `rules` decides (pure), `keeper` has what goes on after a call was answered.

The broker judges a call and puts it on record before its handler is run, so a handler asks for no capability again.
What is done for a plugin later asks `permissions` each time, and appends audit events of its own. Nothing here imports
the broker, the lifecycle or the supervisor.
"""
