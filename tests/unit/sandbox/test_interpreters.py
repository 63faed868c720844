"""Plugins' interpreters run in the sandbox: CPython with asyncio and threads, sh, node with a worker, C."""

from __future__ import annotations

import os

import pytest

from tests.house import confined, processes

LEVELS = ["open", "filtered", "isolated"]
USERS = pytest.mark.parametrize("user", [None, processes.STRANGER], ids=["self", "ordinary"])

PYTHON = b"""#!/usr/bin/env python3
import asyncio, hashlib, json, os, random, ssl, sqlite3, sys, tempfile, threading, zipfile

async def main():
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    assert await reader.read() == b""
    return await asyncio.to_thread(threading.get_ident) != threading.get_ident()

print(asyncio.run(main()), sys.executable, sys.argv[1:])
"""
NODE = b"""#!/usr/bin/env node
const { Worker } = require('worker_threads');
new Worker('require("worker_threads").parentPort.postMessage(require("crypto").randomBytes(4).length)', { eval: true })
  .on('message', (count) => console.log(count, process.argv.slice(2)));
"""
NETWORK = b"""#!/usr/bin/env python3
import os, socket, sys
try:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        print("talked to", server.accept()[1][0])
except OSError as error:
    print(error.strerror)
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
    print("reached the host")
except OSError as error:
    print(error.strerror)
print(sys.argv[2], os.path.exists(sys.argv[2]))
"""


def outputs(program: bytes, orders: list[dict], user: processes.User | None) -> list[str]:
    if user is not None and os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    found = confined.run(program, orders, user=user)
    for result in found["results"]:
        assert result["message"] == "exited 0", result
    return [result["stdout"] for result in found["results"]]


@pytest.mark.root
@USERS
def test_python_runs_with_asyncio_and_threads(user):
    """It does at every level: asyncio on its own stdin, a thread, and modules that open files or make many system
    calls.
    """
    orders = [{"level": level, "features": ["threads"], "args": ["one", "two"]} for level in LEVELS]
    assert outputs(PYTHON, orders, user) == ["True /usr/bin/python3 ['one', 'two']\n"] * 3


@pytest.mark.root
@USERS
def test_node_runs_with_a_worker(user):
    """V8 with a worker; its script is no file in the file system."""
    if not os.path.exists("/usr/bin/node"):
        pytest.skip("node is not installed here")
    limits = {"memory_bytes": 1 << 30}
    orders = [{"level": level, "features": ["threads"], "args": ["x"], "limits": limits} for level in LEVELS[1:]]
    assert outputs(NODE, orders, user) == ["4 [ 'x' ]\n"] * 2


@pytest.mark.root
@USERS
def test_sh_runs_other_programs(user):
    """It has the features processes and workdir, and uses pipes, files and background jobs."""
    script = b"#!/bin/sh -e\ncd /scratch; seq 3 | sort -r > out; (echo job) & wait; cat out; mkdir d; mv out d; ls d\n"
    orders = [{"level": "isolated", "features": ["processes", "workdir"]}]
    assert outputs(script, orders, user) == ["job\n3\n2\n1\nout\n"]


@pytest.mark.root
@USERS
@pytest.mark.parametrize(
    ("network", "own", "host"),
    [
        ("none", "Operation not permitted", "Operation not permitted"),
        ("own", "talked to 127.0.0.1", "Connection refused"),
        ("host", "talked to 127.0.0.1", "reached the host"),
    ],
)
def test_plugin_reaches_only_the_network_it_was_given(user, network, own, host):
    """It has none, a loopback of its own, or the host's; the daemon's files cannot be seen with any of them."""
    orders = [{"level": "isolated", "network": network, "args": ["{tcp}", "{ledger}"]}]
    (said,) = outputs(NETWORK, orders, user)
    first, second, third = said.splitlines()
    assert (first, second) == (own, host)
    assert third.endswith("/ledger False")
