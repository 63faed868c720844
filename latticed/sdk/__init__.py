"""What a plugin author imports: a plugin as a class, with typed host calls.

The package imports the standard library only, nothing else of latticed, and as little as possible: the host's python3
loads it at each start of a plugin, and may be older than the daemon's (3.9 and newer).

    from latticed.sdk import Plugin

    class Hello(Plugin):
        def do_greet(self, payload):
            count = int(self.kv.get("count") or "0") + 1
            self.kv.put("count", str(count))
            return {"hello": payload, "count": count}

    Hello().run()

`run` uses the protocol that the host chose (latticed-stdio-1, or stdio-json-v1 when LATTICE_HOST_RESPONSE_FD is set). A
host call that is refused raises HostError with its stable `code`. What is printed goes to stderr, the plugin's log.
"""

from latticed.sdk.base import Health, PluginError, Reply
from latticed.sdk.calls import HostError
from latticed.sdk.plugin import Plugin
from latticed.sdk.schedule import schedule

__all__ = ["Health", "HostError", "Plugin", "PluginError", "Reply", "schedule"]
