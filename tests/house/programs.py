"""Artifacts that speak the two protocols of system plugins: with our SDK, foreign ones, and malicious ones.

Foreign ones are written from the protocol's description alone and import nothing of latticed.
"""

from __future__ import annotations

SDK = b"""#!/usr/bin/env python3
import errno, os, resource, sys, threading, time
from latticed.sdk import Health, HostError, Plugin, PluginError, Reply

class Test(Plugin):
"""

GREETER = (
    SDK
    + b"""
    def health(self):
        return Health("degraded", "a little tired")

    def do_greet(self, payload):
        print("greeting", payload["name"])
        return Reply({"hello": payload["name"]}, message="said hello")

    def do_text(self, payload):
        return "plain " + payload

    def do_refuse(self, payload):
        raise PluginError("not today")

    def do_log(self, payload):
        self.log.write("warning", payload)

    def do_keep(self, payload):
        self.kv.put("key", payload)
        return self.kv.get("key")

    def do_try(self, payload):
        try:
            return self.call(payload["call"], **payload["params"])
        except HostError as error:
            return {"code": error.code}

Test().run()
"""
)

FOREIGN_PYTHON = b"""#!/usr/bin/env python3
import json
import os
import sys

request = json.loads(sys.stdin.readline())
assert sys.stdin.read() == ""
answers = os.fdopen(int(os.environ["LATTICE_HOST_RESPONSE_FD"]))
action, payload = request["action"], request["payload"]


def host(number, method, **params):
    print(json.dumps({"host_call": {"id": number, "method": method, "params": params}}), flush=True)
    answer = json.loads(answers.readline())["host_response"]
    assert answer["id"] == number
    return answer


def reply(**more):
    print(json.dumps({"ok": True, "message": "", **more}), flush=True)


assert not any(name.startswith("latticed") for name in sys.modules)
if action == "describe":
    reply(result={"name": "foreign", "actions": ["count", "plan"]})
elif action == "health":
    reply(message="all is well", result={"status": "healthy"})
elif action == "count":
    before = host(1, "kv.get", key="count")["result"]
    count = int(before["value"]) + 1 if before["ok"] else 1
    assert host("two", "kv.put", key="count", value=str(count))["ok"]
    reply(message="counted", result={"count": count, "refused": host(3, "kv.list")["error"]})
elif action == "plan":
    reply(plan={"steps": payload})
elif action == "seven":
    reply(result="done")
    os._exit(7)
elif action == "no newline":
    sys.stdout.write('{"ok": true, "message": "the end", "result": [1]}')
elif action == "refuse":
    reply(ok=False, error="bad_payload: I do not like it")
elif action == "nothing":
    sys.exit(5)
"""

FOREIGN_SH = rb"""#!/bin/sh
read -r line
action=$(echo "$line" | sed -n 's/^{"action":"\([a-z]*\)".*/\1/p')
name=$(echo "$line" | sed -n 's/.*"name":"\([^"]*\)".*/\1/p')
case $action in
describe) echo '{"ok": true, "message": "", "result": {"name": "sh"}}' ;;
health) echo '{"ok": true, "message": "fine"}' ;;
count)
    echo '{"host_call": {"id": 1, "method": "kv.get", "params": {"key": "count"}}}'
    read -r answer <&3
    count=$(echo "$answer" | sed -n 's/.*"value":"\([0-9]*\)".*/\1/p')
    count=$((${count:-0} + 1))
    echo '{"host_call": {"id": 2, "method": "kv.put", "params": {"key": "count", "value": "'$count'"}}}'
    read -r answer <&3
    echo "$name counted" >&2
    echo '{"ok": true, "message": "'"$name"'", "result": {"count": '$count'}}'
    ;;
*) echo '{"ok": false, "message": "", "error": "unknown: '"$action"'"}' ;;
esac
"""

SPEAKING_SH = rb"""#!/bin/sh
while read -r line; do
    id=$(echo "$line" | sed -n 's/^{"jsonrpc":"2.0","id":\([0-9]*\).*/\1/p')
    case $line in
    *'"method":"health"'*) result='{"status": "healthy", "message": "from sh"}' ;;
    *'"method":"invoke"'*)
        echo '{"jsonrpc": "2.0", "id": "mine", "method": "kv.put", "params": {"key": "a", "value": "b"}}'
        read -r answer
        echo "the host said $answer" >&2
        echo "it was sent $line" >&2
        result='{"ok": true, "message": "", "result": {"shell": "spoke"}}'
        ;;
    *'"method":"shutdown"'*)
        echo '{"jsonrpc": "2.0", "id": '$id', "result": {}}'
        exit 0
        ;;
    *) result='{}' ;;
    esac
    echo '{"jsonrpc": "2.0", "id": '$id', "result": '"$result"'}'
done
"""


MOODY = (
    SDK
    + b"""
    checks = 0

    def started(self):
        if self.kv.get("broken"):
            print("I cannot start")
            os._exit(4)

    def health(self):
        self.checks += 1
        mood = (self.kv.get("mood") or "healthy").split(",")
        mood = mood[self.checks % len(mood)]
        print("feeling", mood)
        if mood == "hung":
            time.sleep(1000)
        return Health(mood, "as I was told")

    def do_mood(self, payload):
        self.kv.put("mood", payload)

    def do_break(self, payload):
        self.kv.put("broken", "yes")

    def do_mend(self, payload):
        self.kv.delete("broken")

    def do_crash(self, payload):
        print("farewell")
        sys.stderr.flush()
        os._exit(3)

    def do_abort(self, payload):
        os.abort()

    def do_fork(self, payload):
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.setsid()
                time.sleep(1000)

Test().run()
"""
)
"""As healthy as it was told to be, which it keeps for its next start."""


WHO = b"""#!/usr/bin/env python3
import json, os
print(json.dumps({"ok": True, "message": "", "result": [os.getuid(), os.getgid()]}))
"""
