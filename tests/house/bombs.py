"""Artifacts that exhaust a resource: memory, processes, descriptors, disk, output, time."""

from __future__ import annotations

from tests.house.programs import SDK

BOMBS = (
    SDK
    + b"""
    def do_memory(self, payload):
        held = []
        try:
            while True:
                held.append(b"x" * (1 << 20))
        except MemoryError:
            os.write(2, b"no more memory\\n")
            os._exit(1)

    def do_forks(self, payload):
        pids = []
        try:
            while True:
                pid = os.fork()
                if pid == 0:
                    time.sleep(1000)
                pids.append(pid)
        except OSError as error:
            return {"errno": errno.errorcode[error.errno], "count": len(pids)}

    def do_bomb(self, payload):
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.001)

    def do_files(self, payload):
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            return {"errno": errno.errorcode[error.errno], "count": len(held)}
        finally:
            for fd in held:
                os.close(fd)

    def do_threads(self, payload):
        over, count = threading.Event(), 0
        try:
            while True:
                threading.Thread(target=over.wait, daemon=True).start()
                count += 1
        except RuntimeError as error:
            return {"error": str(error), "count": count}
        finally:
            over.set()

    def do_disk(self, payload):
        def write(number):
            with open(f"/scratch/{number}", "xb", buffering=0) as out:
                if out.write(bytes(1 << 16)) < 1 << 16:
                    out.write(b"more")
        self._until_it_fails(write)

    def do_inodes(self, payload):
        self._until_it_fails(lambda number: open(f"/scratch/{number}", "x").close())

    def _until_it_fails(self, step):
        try:
            for number in range(1 << 20):
                step(number)
        except OSError as error:
            os.write(2, f"{errno.errorcode[error.errno]} at {number}\\n".encode())
            os._exit(1)

    def do_huge_file(self, payload):
        with open("/scratch/huge", "wb") as out:
            self._until_it_fails(lambda number: out.truncate(number << 16))

    def do_stderr(self, payload):
        for _ in range(payload >> 10):
            os.write(2, b"y" * 1023 + b"\\n")
        return "written"

    def do_flood(self, payload):
        def flood():
            while True:
                os.write(2, b"y" * 1023 + b"\\n")
        threading.Thread(target=flood, daemon=True).start()

    def do_sleep(self, payload):
        time.sleep(1000)

    def do_calls(self, payload):
        answers = {}
        for _ in range(payload):
            try:
                self.kv.get("key")
                code = "ok"
            except HostError as error:
                code = error.code
            answers[code] = answers.get(code, 0) + 1
        return answers

    def do_limits(self, payload):
        names = ("RLIMIT_DATA", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE")
        return {name: resource.getrlimit(getattr(resource, name)) for name in names}

    def do_nothing(self, payload):
        return "alive"

Test().run()
"""
)

WIDE_ONE_SHOT = b"""#!/usr/bin/env python3
import json, os, sys
request = json.loads(sys.stdin.readline())
line = b'{"ok": true, "message": "", "result": "wide"'
os.write(1, line + b" " * ((request["payload"] or 1000) - len(line) - 1) + b"}")
"""
"""Replies with as many bytes as the payload says."""
