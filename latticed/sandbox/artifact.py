"""A verified artifact, sealed in memory, ready to be executed (architecture decision 2).

The bytes are copied from the stored pair into a memfd, sealed, and hashed there: what runs is what was verified,
whatever happens to the store meanwhile, and again at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.kit import text
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.sandbox import syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.bundle.read import BundleDirectory, Stamp

# No more writing, shrinking or growing, and no seal can be added (fcntl(2)); a mapping that writes prevents sealing.
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_NOEXEC_SEAL, _MFD_EXEC = 0x8, 0x10  # memfd_create(2); Linux 6.3, not in the os module
_HEAD_BYTES: Final = 4096  # what `classify` looks at; longer than any first line that is allowed
_CHUNK_BYTES: Final = 1 << 20
_LINE_BYTES: Final = 256  # about what execve(2) reads of a first line since Linux 5.1
_ELF_TYPES: Final = (2, 3)  # ET_EXEC, ET_DYN


class SealedCopy(Value, frozen=True, kw_only=True):
    """Sealed bytes in memory. `fd` is its descriptor, which it owns; `size` in bytes; `sha256` in lowercase hex.

    `executable`: the kernel lets programs in memory be executed (sysctl vm.memfd_noexec may forbid it). `copied_from`:
    the stamp of the file that it was copied from, None when there was none; `mode`: its own, with the file's type.
    """

    fd: int
    size: int
    sha256: str
    executable: bool
    copied_from: Stamp | None = None
    mode: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; children that run it have their own copies."""
        os.close(self.fd)

    def let_go(self) -> None:
        """`close` in a thread, for the event loop: who closes it last frees the memory, 0.2 to 0.5 ms for each MiB.

        At once where there is no thread: whoever stops a plugin then must not fail half-way, and keep the descriptor.
        """
        try:
            asyncio.get_running_loop().run_in_executor(None, self.close)
        except RuntimeError:  # of the executor: the system has no thread to give, or it is shut down
            self.close()

    def again(self) -> Self:
        """The same bytes under a descriptor of its own, to be read only. OSError when there is none left.

        Opened, not duplicated: offset and flags would be shared with each child that ever got the other one.
        """
        return replace(self, fd=os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC))

    def is_as_sealed(self) -> bool:
        """Whether the kernel holds its bytes to what they were when they were hashed, and it can still be executed.

        Seals hold for ever, but a child of our own uid may fchmod(2) what it runs.
        """
        sealed = fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        return sealed and os.fstat(self.fd).st_mode == self.mode


class Artifact(SealedCopy, frozen=True, kw_only=True):
    """A sealed copy that can be executed.

    Without an `interpreter` it is an ELF executable; otherwise `interpreter` is the base name in a script's first line,
    and `interpreter_args` what follows it there.
    """

    interpreter: str | None = None
    interpreter_args: tuple[str, ...] = ()


def seal(directory: BundleDirectory, *, sha256: str) -> SealedCopy:
    """Copy the artifact of `directory` into a sealed memfd and check that its digest is `sha256` (lowercase hex).

    Problem("digest_mismatch") when the bytes are others, BundleRefused when it cannot be read. Nothing stays open then.
    Blocks: call it in a thread.
    """
    fd, executable = executable_memory()
    try:
        size = _fill(fd, directory, sha256)
        mode, copied_from = os.fstat(fd).st_mode, directory.read_as
        return SealedCopy(fd=fd, size=size, sha256=sha256, executable=executable, copied_from=copied_from, mode=mode)
    except BaseException:
        os.close(fd)
        raise


def program(copy: SealedCopy, interpreters: Mapping[str, str]) -> Artifact:
    """`copy` as what is to be executed; it takes over the descriptor, which is closed when it cannot be.

    `interpreters` maps the names that a script's first line may have to paths. Problem: `artifact_not_executable`,
    `interpreter_not_allowed`.
    """
    try:
        kind = classify(os.pread(copy.fd, _HEAD_BYTES, 0), interpreters)
    except BaseException:
        copy.close()
        raise
    return Artifact(
        fd=copy.fd,
        size=copy.size,
        sha256=copy.sha256,
        executable=copy.executable,
        copied_from=copy.copied_from,
        mode=copy.mode,
        **kind,
    )


def memory() -> int:
    """An empty memfd for data, to be sealed with `close_for_good`; the caller closes it."""
    return executable_memory()[0]


def close_for_good(fd: int) -> None:
    """Seal a memfd from `memory`: its bytes cannot change from now on."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def _fill(fd: int, directory: BundleDirectory, sha256: str) -> int:
    """Copy the artifact to `fd`, seal it, compare its digest; return its size in bytes.

    Hashed once it is sealed, not while it is copied: until then a process of the same user can write to the memfd
    through /proc.
    """
    directory.copy_artifact(fd)
    close_for_good(fd)
    found = _digest(fd)
    if found != sha256:
        raise Problem(
            "digest_mismatch", f"the artifact no longer matches (expected {sha256[:12]}…, found {found[:12]}…)"
        )
    return os.fstat(fd).st_size


def classify(
    head: bytes, interpreters: Mapping[str, str], *, machine: syscalls.Machine | None = None
) -> dict[str, Any]:
    """Classify an artifact by its first bytes (at most `_HEAD_BYTES` of it): {} for an ELF executable, else
    `interpreter` and `interpreter_args`.

    `#!/usr/bin/env python3 -u` gives `python3` and `("-u",)`. `machine`: the host's by default. Problem:
    `artifact_not_executable`, `interpreter_not_allowed`.
    """
    if head.startswith(b"\x7fELF"):
        _check_elf(head, machine or syscalls.machine())
        return {}
    if not head.startswith(b"#!"):
        raise _not_executable(f"its first bytes are {text.sanitise(repr(head[:8]), 40)}")
    line, newline, _ = head[2:].partition(b"\n")
    # Without a newline the line is complete only if the artifact itself ends here.
    if len(line) > _LINE_BYTES or not (newline or len(head) < _HEAD_BYTES):
        raise _not_executable(f"its first line is longer than {_LINE_BYTES} bytes")
    try:
        words = [word for word in line.decode("utf-8").replace("\t", " ").split(" ") if word]  # as the kernel does
    except UnicodeDecodeError as error:
        raise _not_executable("its first line is not UTF-8") from error
    return _interpreter(words, interpreters)


def _interpreter(words: list[str], interpreters: Mapping[str, str]) -> dict[str, Any]:
    """The interpreter that the words of a first line name, by its base name: paths come from the operator's table
    alone.
    """
    name, arguments = (os.path.basename(words[0]), words[1:]) if words else ("", [])
    if name == "env":
        # With -S env(1) splits what follows into words, as is done here for every line.
        arguments = arguments[1:] if arguments[:1] == ["-S"] else arguments
        name, arguments = (os.path.basename(arguments[0]), arguments[1:]) if arguments else ("", [])
    if name not in interpreters:
        raise Problem(
            "interpreter_not_allowed",
            f"expected the script's first line to name one of {', '.join(sorted(interpreters)) or 'no interpreter'},"
            f' found "{text.sanitise(name, 80)}"',
            "begin it with, for example, #!/usr/bin/env python3; an operator may allow more in the settings",
        )
    return {"interpreter": name, "interpreter_args": tuple(arguments)}


def _check_elf(head: bytes, machine: syscalls.Machine | None) -> None:
    """Problem("artifact_not_executable") unless `head` begins an executable for `machine` (elf(5))."""
    # Class 2 is 64-bit, data 1 little-endian; then at 16 the type and at 18 the machine, two bytes each.
    if machine is None or len(head) < 20 or head[4:6] != b"\x02\x01":
        raise _not_executable("it is an ELF file, not a 64-bit little-endian one")
    kind, found = int.from_bytes(head[16:18], "little"), int.from_bytes(head[18:20], "little")
    if kind not in _ELF_TYPES:
        raise _not_executable(f"it is an ELF file of type {kind}, not a program")
    if found != machine.elf:
        names = {known.elf: known.name for known in syscalls.MACHINES.values()}
        raise _not_executable(
            f"it is built for {names.get(found, f'ELF machine {found}')}, this host is {machine.name}"
        )


def _not_executable(found: str) -> Problem:
    """Problem artifact_not_executable; `found` says what the artifact is instead."""
    return Problem(
        "artifact_not_executable",
        f"expected an ELF executable for this host or a script with an interpreter in its first line; {found}",
        "pack a program, or begin the script with #!/usr/bin/env and its interpreter",
    )


def executable_memory(name: str = "artifact") -> tuple[int, bool]:
    """An empty memfd, to be sealed with `close_for_good`, and whether it may be executed; the caller closes it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC), True
    except OSError as error:  # EACCES: vm.memfd_noexec is 2, which forbids executable ones
        if error.errno == errno.EINVAL:  # before 6.3 there was no such flag, and no such policy
            return os.memfd_create(name, flags), True
        if error.errno != errno.EACCES:
            raise
    return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL), False


def _digest(fd: int) -> str:
    """The SHA-256 of all bytes of `fd`, whatever its offset, in lowercase hex."""
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


def of_bytes(data: bytes, *, interpreters: Mapping[str, str] | None = None) -> Artifact:
    """Trusted bytes (a probe, a test), sealed like an artifact; the caller closes it. Nothing is verified.

    `interpreters` as of `seal`, for scripts. Problem as `classify`.
    """
    fd, executable = executable_memory()
    try:
        with contextlib.closing(os.fdopen(os.dup(fd), "wb")) as out:  # closing flushes, and closes the duplicate
            out.write(data)
        close_for_good(fd)
        sha256 = hashlib.sha256(data).hexdigest()
    except BaseException:
        os.close(fd)
        raise
    return program(SealedCopy(fd=fd, size=len(data), sha256=sha256, executable=executable), interpreters or {})
