"""The credentials of a tunnel: a file in the operator's directory that no other user can read.

A token has the same contents in another encoding. It is turned into credentials: started with a token, cloudflared
would take its ingress rules from the provider.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.kit import files
from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.host.tunnel.spec import TunnelSpec

MAX_BYTES: Final = 16 << 10
"""A file of either kind is well below 1 KiB; the bound is for a name that leads to something else."""
CODE: Final = "credentials_unusable"
"""The code of every Problem of this module."""
_ACCOUNT: Final = re.compile(r"[0-9a-fA-F]{32}")


class _File(msgspec.Struct, frozen=True):
    """A credentials file, as cloudflared writes it: account, secret in base64, id of the tunnel."""

    AccountTag: str
    TunnelSecret: str
    TunnelID: str


class _Token(msgspec.Struct, frozen=True):
    """A token, once decoded from base64: account, id of the tunnel, secret in base64."""

    a: str
    t: str
    s: str


class Credentials(Value, frozen=True, kw_only=True):
    """Account (32 hex digits), secret (base64) and id of a tunnel; `repr` shows the id alone."""

    account: str
    secret: str
    tunnel: str

    def encode(self) -> bytes:
        """The JSON of the credentials file that cloudflared reads."""
        file = _File(AccountTag=self.account, TunnelSecret=self.secret, TunnelID=self.tunnel)
        return msgspec.json.encode(file)

    # The generated one would show the secret in logs and tracebacks.
    def __repr__(self) -> str:
        return f"Credentials(tunnel={self.tunnel!r})"


def load(directory: str, spec: TunnelSpec) -> Credentials:
    """The credentials in the file that a spec names, below `directory` (setting `tunnel.credentials_dir`).

    Problem credentials_unusable says what is wrong: no such file, not private, malformed, of another tunnel. Its text
    holds nothing of the contents. Blocks: call it in a thread.
    """
    if not directory:
        raise _unusable("the operator has named no directory", "set tunnel.credentials_dir")
    data = _read(directory, spec.file)
    try:
        found = _of_token(data) if spec.is_token else _of_file(data)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        kind = "a token" if spec.is_token else "a JSON object with AccountTag, TunnelSecret and TunnelID"
        raise _unusable(f"{spec.file} is not {kind}") from error
    # A plugin names both the tunnel and the file: a wrong pair would run another tunnel than the spec says.
    if found.tunnel.lower() != spec.tunnel:
        raise _unusable(f"{spec.file} is that of another tunnel")
    return found


def _read(directory: str, name: str) -> bytes:
    """The bytes of a file of the directory, which only root and the daemon's user may be able to change, and only they
    to read; Problem credentials_unusable.
    """
    owners = {0, os.geteuid()}
    try:
        with files.closing(files.open_directory(directory)) as folder:
            found = os.fstat(folder)
            # Judged by descriptor (fstat), as is the file below: what is checked is what is read. Others may list the
            # directory, but not write to it, and so exchange the file.
            if found.st_uid not in owners or found.st_mode & 0o022:
                raise _unusable("the directory can be changed by others")
            with files.closing(files.open_file(name, beneath=folder)) as fd:
                found = os.fstat(fd)
                if found.st_uid not in owners or found.st_mode & 0o077:
                    mode = stat.S_IMODE(found.st_mode)
                    raise _unusable(f"{name} has mode {mode:04o} and owner {found.st_uid}", "chmod 600, and its owner")
                return files.read_open(fd, MAX_BYTES)
    # `files.read_open` raises ValueError for a file that is not regular, or has more than MAX_BYTES.
    except (OSError, ValueError) as error:
        raise _unusable(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _of_file(data: bytes) -> Credentials:
    """From the contents of a credentials file; msgspec.MsgspecError or ValueError."""
    found = msgspec.json.decode(data, type=_File)
    return _checked(Credentials(account=found.AccountTag, secret=found.TunnelSecret, tunnel=found.TunnelID))


def _of_token(data: bytes) -> Credentials:
    """From the contents of a token's file; msgspec.MsgspecError, binascii.Error or ValueError."""
    found = msgspec.json.decode(base64.b64decode(data.strip(), validate=True), type=_Token)
    return _checked(Credentials(account=found.a, secret=found.s, tunnel=found.t))


def _checked(found: Credentials) -> Credentials:
    """The credentials, if account and secret have the right form; ValueError or binascii.Error otherwise."""
    if not _ACCOUNT.fullmatch(found.account) or len(base64.b64decode(found.secret, validate=True)) < 16:
        raise ValueError("expected an account of 32 hex digits and a secret of at least 16 bytes")
    return found


def _unusable(found: str, hint: str = "") -> Problem:
    """The Problem for what was found instead of usable credentials."""
    expected = "expected credentials that only root or the daemon's user can read"
    return Problem(CODE, f"{expected}, found: {found}", hint)
