"""Host services: what plugins may ask of the host; a package for each noun, or one module for a small one.

`calls` declares the host calls (name, typed parameters, handler; `model.hostcall` has the capability of each), `spec`
validates parameters, `rules` decides (pure), `keeper` does the work that continues after a call was answered.

The broker checks the capability of a call and audits it before the handler runs, so handlers check none. Work that
continues after the call checks `permissions` each time, and appends audit events of its own. Nothing here imports the
broker, the lifecycle or the supervisor.
"""
