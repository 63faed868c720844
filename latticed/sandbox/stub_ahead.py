"""The launch stub, started ahead of the children: it clones itself for each plan that the daemon sends, and the clone
carries the plan out as if the daemon had just started it; executed in `stub`'s namespace, which it ends with `serve`.

The clones are children of the daemon (CLONE_PARENT), so the kernel reports their end to it, and PDEATHSIG means it. The
stub holds no secret: it reads no plan, and closes what came with one before it takes the next.
"""

from __future__ import annotations

import _socket
import ctypes
import gc
import marshal
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from latticed.sandbox.stub import (  # noqa: TC004 - executed before this, in the same names
        CLONE_PARENT,
        NO_FD,
        PR_SET_DUMPABLE,
        PR_SET_NAME,
        PR_SET_NO_NEW_PRIVS,
        SIGCHLD,
        attempt,
        carry_out,
        tie_to_daemon,
    )
    from latticed.sandbox.stub_calls import (  # noqa: TC004
        DAEMON,
        PLAN,
        SOCKET,
        STATUS,
        Plan,
        begin,
        call,
        check,
        libc,
        numbers,
        prctl,
        tell,
        write_to,
    )

F_DUPFD_CLOEXEC = 1030  # linux/fcntl.h
HIGH = 256  # descriptors wait above this for their numbers, which are below 128
MOST_FDS, MOST_BYTES = 64, 1024  # of one message
# Found by name before the first clone, so that each clone finds them in memory.
WARM = (
    "capset fcntl ioctl mount poll prctl setrlimit signal sigprocmask socket syscall umount2 unshare"
    " bind listen recv sendmsg"
).split()
# As `libc`, and keeps the interpreter's lock, as os.fork does: a clone must not find it released.
locked = ctypes.PyDLL(None, use_errno=True)
locked.syscall.restype = ctypes.c_long


def serve(given: Plan) -> None:
    """Clone a child for each message, until the daemon closes its end of SOCKET; never returns.

    `given`: `numbers` of system calls, and `oom_score_adj`. A message is a word of flags for clone(2), then the number
    that each descriptor which came with it is to have in the child. What fails here is told by ending.
    """
    numbers.update(given["numbers"])
    # Whatever the daemon was started with, and let its children inherit: not for as long as this process stays.
    for low, last in ((3, DAEMON - 1), (DAEMON + 1, SOCKET - 1), (SOCKET + 1, NO_FD)):
        call("close_range", low, last, 0)
    # What a clone inherits is done once. Before it is undumpable: /proc/self belongs to root then.
    write_to("/proc/self/oom_score_adj", str(given["oom_score_adj"]))
    # A process that stays, with the daemon's uid: others of that uid must not read or change its memory (ptrace(2)).
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NAME, b"latticed-stub")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    tie_to_daemon()  # for itself: a clone is tied by its own plan, as fork clears this
    for name in WARM:
        getattr(libc, name)
    sock = _socket.socket(fileno=SOCKET)
    done = {"oom_score_adj": given["oom_score_adj"], "ids": (os.getuid(), os.getgid())}
    # Objects that never move out of their pages: the clones share them as long as they do not write there.
    gc.collect()
    gc.disable()
    gc.freeze()
    while True:
        space = _socket.CMSG_SPACE(4 * MOST_FDS)
        data, ancillary, flags, _ = sock.recvmsg(MOST_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        fds = [fd for _, _, raw in ancillary for fd in struct.unpack(f"{len(raw) // 4}i", raw)]
        if not flags & _socket.MSG_CTRUNC:  # else there was no room for a descriptor: the daemon sees STATUS end
            make_child(data, fds, done)
        for fd in fds:
            os.close(fd)


def make_child(data: bytes, fds: list[int], done: Plan) -> None:
    """Clone a child and give it its pid. Without that it ends: then nothing was reported, and nothing was done."""
    (kinds,), wanted = struct.unpack_from("=q", data), struct.unpack_from(f"={len(fds)}i", data, 8)
    wait, go = os.pipe()
    pid = clone(kinds)
    if pid == 0:
        os.close(go)
        attempt(be_child, wait, fds, wanted, {**done, "made": ("user", "pid") if kinds else ()})
    if pid > 0:
        # In a pid namespace of its own it knows no number that means anything to the daemon.
        os.write(go, b"%d" % pid)  # before our reading end is closed: it may have been killed
    os.close(wait)
    os.close(go)


def clone(kinds: int) -> int:
    """Clone this process as a child of its parent, in new namespaces of these `kinds`; -1 when that is refused.

    A system call, since fork(3) makes only children of one's own. What os.fork does around it for the interpreter is
    done here; the C library's part of it is for threads, of which there is one.
    """
    python, word = ctypes.pythonapi, ctypes.c_long
    python.PyOS_BeforeFork()
    zeros = [word(0)] * 4
    pid: int = locked.syscall(word(numbers["clone"]), word(CLONE_PARENT | SIGCHLD | kinds), *zeros)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return pid


def be_child(wait: int, fds: list[int], wanted: tuple[int, ...], done: Plan) -> None:
    """Go on as the child: tell the daemon its pid, put the descriptors at their numbers, carry out the plan."""
    pid = os.read(wait, 16)
    # End of file: the stub has died. The daemon starts the child again, so this one must do nothing.
    if not pid:
        os._exit(127)
    os.dup2(fds[wanted.index(STATUS)], STATUS)
    os.setsid()  # session and group of its own, as a stub has that is started for one child
    tell(f"stub {int(pid)}")  # from here on the daemon can end what this process does, and what it makes
    begin("descriptors")
    high = [check(libc.fcntl(fd, F_DUPFD_CLOEXEC, HIGH)) for fd in fds]
    # All but STATUS and the daemon's pidfd, which is the stub's; the socket to the daemon too.
    for low, last in ((0, STATUS - 1), (DAEMON + 1, HIGH - 1)):
        call("close_range", low, last, 0)
    for fd, number in zip(high, wanted, strict=True):
        os.dup2(fd, number)
    call("close_range", HIGH, NO_FD, 0)
    begin("plan")
    plan = marshal.loads(os.pread(PLAN, os.fstat(PLAN).st_size, 0))  # noqa: S302 - the daemon's, in its memfd
    carry_out({**plan, "ahead": {**done, "pid": int(pid)}})
