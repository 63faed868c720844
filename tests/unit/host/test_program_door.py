"""The door of a service with a network of its own: how the daemon gets in, and what a program can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from pathlib import Path

import pytest

from latticed.host.program.door import Door
from latticed.model.errors import Problem
from tests.house import children
from tests.unit.host.test_program_keeper import A, B, tree, until, world

LOOPBACK, LOOPBACK6 = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")
ECHO = """
import socket, sys, threading
def serve(family, address):
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 3000)); listener.listen(200)
        print('up', address, flush=True)
        while True:
            one, peer = listener.accept()
            threading.Thread(target=answer, args=(one,), daemon=True).start()
def answer(one):
    with one:
        while data := one.recv(65536): one.sendall(data.upper())
threading.Thread(target=serve, args=(socket.AF_INET6, '::1'), daemon=True).start()
serve(socket.AF_INET, '127.0.0.1')
"""


@pytest.fixture
async def here(tmp_path):
    async with world(tmp_path) as opened:
        yield opened


async def echoing(here, script=ECHO, name="web", **more):
    await here.call("service.put", name=name, program="python", args=("-c", script), network="own", **more)
    await here.until_said("up 127.0.0.1", name)


async def reached(here, address=LOOPBACK, port=3000, name="web", caller=A):
    loop = asyncio.get_running_loop()
    with contextlib.closing(await here.programs.inside(caller.plugin_id, name, address)) as sock:
        await loop.sock_connect(sock, (str(address), port))
        await loop.sock_sendall(sock, b"hello")
        return await loop.sock_recv(sock, 100)


async def until_reached(here):
    """Wait until a program that was started again answers."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Problem, OSError):
                return await reached(here)
            await asyncio.sleep(0.01)


async def test_daemon_reaches_a_program_in_its_own_network(here):
    """By both families, many at once; its port is nowhere on the host, and not in another service's network."""
    await echoing(here)
    await here.until_said("up ::1", "web")
    assert await reached(here) == b"HELLO"
    assert await reached(here, LOOPBACK6) == b"HELLO"
    # Fewer than the threads and processes that it may have: it starts one for each.
    assert set(await asyncio.gather(*(reached(here) for _ in range(40)))) == {b"HELLO"}
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", 3000)
    await echoing(here, "import time; print('up 127.0.0.1', flush=True); time.sleep(999)", name="other")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await reached(here, name="other")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await reached(here, port=3001)


async def test_nobody_reaches_what_does_not_run_or_is_another_plugins(here):
    """The door goes with the permission, and with the program."""
    await echoing(here)
    for name, caller in (("none", A), ("web", B)):
        with pytest.raises(Problem, match="does not run in a network of its own"):
            await here.programs.inside(caller.plugin_id, name, LOOPBACK)
    here.allowed.discard(A.plugin_id)
    with pytest.raises(Problem, match="does not run"):
        await here.programs.inside(A.plugin_id, "web", LOOPBACK)
    here.programs.recheck(A.plugin_id)
    await here.programs.drained(A.plugin_id)
    assert tree() == set()
    here.allowed.add(A.plugin_id)
    here.programs.recheck(A.plugin_id)
    assert await until_reached(here) == b"HELLO"
    await here.put("plain", "sleep 999")
    await here.until_state("running", "plain")
    with pytest.raises(Problem, match="does not run in a network of its own"):
        await here.programs.inside(A.plugin_id, "plain", LOOPBACK)


async def test_end_of_the_program_is_its_own(here):
    """Although its door ends with it, the exit status is what is shown; afterwards there is a new door."""
    await echoing(here, ECHO.replace("data.upper()", "data.upper() if data != b'die' else __import__('os')._exit(7)"))
    before = here.programs.get(A.plugin_id, "web").door
    sock = await here.programs.inside(A.plugin_id, "web", LOOPBACK)
    loop = asyncio.get_running_loop()
    with contextlib.closing(sock):
        await loop.sock_connect(sock, ("127.0.0.1", 3000))
        await loop.sock_sendall(sock, b"die")
        await until(lambda: here.program("web").restarts == 1)
    assert "exited 7" in (await here.status("web"))["last_error"]["message"]
    await until(before.lost.is_set)
    assert await until_reached(here) == b"HELLO"


def door_process(here):
    """The process that makes sockets: a child of process 1 of the namespace that is not the program."""
    pid = here.program("web").pid
    (init,) = (one for one in here.program("web")._child.roots if one != pid)
    (door,) = children.descendants(init)
    return door


async def test_program_whose_door_is_lost_is_started_again(here):
    await echoing(here)
    os.kill(door_process(here), signal.SIGKILL)
    await until(lambda: here.program("web").restarts == 1)
    assert (await here.status("web"))["last_error"]["code"] == "door_lost"
    assert await until_reached(here) == b"HELLO"


async def test_door_stays_open_while_the_program_ends(here):
    """What it is asked meanwhile is answered."""
    await echoing(here, "import signal; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))" + ECHO)
    here.program("web")._child._signal(signal.SIGTERM)
    await here.until_said("asked", "web")
    assert await reached(here) == b"HELLO"
    assert here.program("web").restarts == 0


async def test_stopped_door_holds_nobody_up_for_long(here, monkeypatch):
    """A door that does not answer is an error after a while, and for whoever asks beyond a number at once."""
    monkeypatch.setattr("latticed.host.program.door.ANSWER_S", 0.05)
    monkeypatch.setattr("latticed.host.program.door.MAX_ASKED", 4)
    await echoing(here)
    pid = door_process(here)
    os.kill(pid, signal.SIGSTOP)
    found = await asyncio.gather(
        *(here.programs.inside(A.plugin_id, "web", LOOPBACK) for _ in range(6)), return_exceptions=True
    )
    assert sorted(one.code for one in found) == ["busy", "busy", *["door_lost"] * 4]
    os.kill(pid, signal.SIGCONT)
    # Late answers are for nobody, and do not get mixed up with those of later callers.
    await until(lambda: not here.programs.get(A.plugin_id, "web").door._asked)
    assert await reached(here) == b"HELLO"


async def test_door_process_has_one_descriptor_and_few_rights(here):
    """No file, no pipe of the program, nothing of the daemon's; its filter refuses everything else."""
    await echoing(here)
    pid = door_process(here)
    assert [os.readlink(f"/proc/{pid}/fd/{fd}")[:7] for fd in os.listdir(f"/proc/{pid}/fd")] == ["socket:"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16)) == ("2", "1", 0)
    uids = {int(one) for one in status["Uid"].split()}
    assert 0 not in uids
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{here.program('web').pid}/ns/net")


HOSTILE = """
import os, signal, socket, sys, time
print(sorted(os.listdir('/dev')), flush=True)
for fd in range(3, 200):
    try: os.fstat(fd); print('open', fd)
    except OSError: pass
print(open('/etc/hosts').read(), open('/etc/resolv.conf').read(), sep='|')
for pid in range(1, 20):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGKILL); print('killed', pid)
        except OSError as error: pass
try: print(socket.getaddrinfo('example.org', 443))
except OSError as error: print('no address')
print('up 127.0.0.1', flush=True); time.sleep(999)
"""


async def test_program_finds_nothing_of_the_door(here):
    """No descriptor; and the host's names and name servers are not there."""
    await here.call("service.put", name="web", program="python", args=("-c", HOSTILE), network="own", restart="never")
    await until(lambda: here.program("web").state in {"failed", "running"})
    await until(lambda: "127.0.0.1 localhost" in here.program("web").output()["stdout"])
    said = here.program("web").output()["stdout"]
    assert "open" not in said
    assert "::1 localhost\n|" in said


async def test_forged_messages_close_the_door_and_nothing_else():
    """Whatever the other side sends: descriptors that come with it are closed."""
    for forged in (b"X", b"S", b"L"):
        door = Door()
        other = os.open("/dev/null", os.O_RDONLY)
        try:
            socket.send_fds(door.theirs, [b"L"], [])
            assert await door.listeners() == []
            socket.send_fds(door.theirs, [forged], [other, other])
            await until(door.lost.is_set)
            with pytest.raises(Problem):
                await door.make(LOOPBACK)
        finally:
            os.close(other)
            door.close()


async def test_door_of_a_child_that_was_never_started_is_closed():
    door = Door()
    door.started()
    await until(door.lost.is_set)
    with pytest.raises(Problem):
        await door.listeners()
