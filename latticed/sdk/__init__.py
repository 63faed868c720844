"""What a plugin author imports: a plugin as a class, with typed host calls. It must stay importable by itself.

Standard library only, nothing else of latticed, and little of that: it is read by the host's own python3, which may be
older than the daemon's (3.9 and newer), at each start of a plugin.

    from latticed.sdk import Plugin

    class Hello(Plugin):
        def do_greet(self, payload):
            count = int(self.kv.get("count") or "0") + 1
            self.kv.put("count", str(count))
            return {"hello": payload, "count": count}

    Hello().run()

`run` speaks the protocol the host chose (latticed-stdio-1, or stdio-json-v1 when LATTICE_HOST_RESPONSE_FD is set). A
host call that is refused raises HostError with its stable `code`. What is printed goes to stderr, the plugin's log.
"""

from latticed.sdk.base import Health, PluginError, Reply
from latticed.sdk.calls import HostError
from latticed.sdk.plugin import Plugin

__all__ = ["Health", "HostError", "Plugin", "PluginError", "Reply"]
