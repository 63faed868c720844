#!/usr/bin/env python3
"""Greets, and counts how often: a plugin in Python, with the SDK. It lives as long as it is active."""

from latticed.sdk import Health, HostError, Plugin, PluginError, Reply


class Hello(Plugin):
    """Greets by name and remembers how often."""

    greetings = 0

    def started(self):
        """Go on where an earlier life ended."""
        self.greetings = int(self.kv.get("greetings") or "0")

    def health(self):
        return Health("healthy", f"{self.greetings} greetings")

    def do_greet(self, payload):
        """kv:write remembers the count, log:write leaves a line in the journal."""
        name = payload.get("name", "world") if isinstance(payload, dict) else payload or "world"
        if not isinstance(name, str) or len(name) > 80:
            raise PluginError("expected a name of at most 80 characters")
        self.kv.put("greetings", str(self.greetings + 1))
        self.greetings += 1
        self.note("greeted", name=name, count=self.greetings)
        return Reply({"count": self.greetings}, message=f"Hello, {name}!")

    def do_forget(self, payload):
        """Begin again from nothing."""
        existed = self.kv.delete("greetings")
        self.greetings = 0
        return {"existed": existed}

    def note(self, message, **fields):
        """A log line is worth nothing that an action should fail for."""
        try:
            self.log.info(message, **fields)
        except HostError as error:
            print(f"not logged: {error}")  # standard output is stderr here, and that is the plugin's log


if __name__ == "__main__":
    Hello().run()
