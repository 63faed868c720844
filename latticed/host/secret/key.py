"""The key that encrypts secrets: from the service manager's credentials, or a file outside the state directory.

Never inside it: a backup or copy of the state must not contain both ciphertext and key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import stat
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import files, trusted_files
from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from latticed.settings import Settings

CREDENTIAL: Final = "latticed-secrets.key"
"""The credential's name (systemd.exec(5), LoadCredential=)."""
FILE: Final = "secrets.key"
"""Name of the key file beside the settings file, where neither credential nor setting names one."""
KEY_BYTES: Final = 32
"""Of the stored key, from which 256-bit keys are derived."""
# A key in base64 has 44 characters; more may be white space around it.
_MAX_FILE_BYTES: Final = 1_024
READ_S: Final = 0.25
"""How long the event loop is blocked for reading the key: at a start, after a reload, and for a key that changed."""


class KeyLocation(Value, frozen=True, kw_only=True):
    """Where the key is. `ours`: a file that the daemon makes if it is missing, and that must be private (0600)."""

    path: Path
    ours: bool


class SealingKeys(Value, frozen=True, kw_only=True):
    """Keys derived from the stored one: `id` names it and reveals nothing; `cipher` seals; `binding` is for MACs."""

    id: str
    cipher: AESGCM
    binding: bytes

    def mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 of a binding (RFC 2104), 32 bytes."""
        return hmac.digest(self.binding, message, hashlib.sha256)


def place(settings: Settings, environ: Mapping[str, str]) -> KeyLocation:
    """Where the key is looked for; Problems settings_invalid, secret_unavailable (it would be in the state directory).

    The credential wins where there is one; then `[secrets] key_file`; else `secrets.key` beside the settings file.
    """
    # Set by systemd for a unit with credentials (systemd.exec(5)).
    given = environ.get("CREDENTIALS_DIRECTORY", "")
    if given.startswith("/") and (path := Path(given) / CREDENTIAL).exists():
        return KeyLocation(path=path, ours=False)
    wanted = settings.secrets.key_file
    if wanted and (not os.path.isabs(wanted) or "\0" in wanted):
        raise Problem("settings_invalid", f"secrets.key_file: expected an absolute path, found {wanted[:80]!r}")
    beside = settings.config_file.parent if settings.config_file else settings.trust.parent
    path = Path(wanted) if wanted else beside / FILE
    # Resolved, so that a symlink into the state directory counts as inside.
    if path.resolve().is_relative_to(settings.state_dir.resolve()):
        raise Problem(
            "secret_unavailable",
            f"expected the key of secrets outside the state directory, found {path}",
            "set secrets.key_file to a place that backups of the state do not reach",
        )
    return KeyLocation(path=path, ours=True)


def read(found: KeyLocation) -> SealingKeys | None:
    """The key, or None when there is no file; Problem secret_unavailable when it is no key or not private. Blocks."""
    owners = frozenset({0, os.geteuid()})
    try:
        data = trusted_files.read(found.path, _MAX_FILE_BYTES, owners=owners)
        mode = stat.S_IMODE(found.path.stat().st_mode)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unavailable(
            f"the key {found.path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    except trusted_files.ForeignFile as fault:
        hint = "only root or the daemon's user may be able to change it"
        raise _unavailable(f"the key {found.path} cannot be trusted: {fault}", hint) from fault
    if (
        found.ours and mode & 0o077
    ):  # the mode of a credential is the service manager's, and may show the mask of an ACL
        hint = f"chmod 600 {found.path}, and make a new key if others may have read it"
        raise _unavailable(f"{found.path}: expected mode 0600, found {mode:04o}", hint)
    return derive(_decoded(data, found.path))


class KeyReader:
    """Reads the key in a thread: `get` blocks the event loop for at most READ_S, and not at all while a read hangs.

    It blocks because references are replaced by plain functions (`PluginSecrets.expand`), which cannot await.
    """

    def __init__(self, place: KeyLocation) -> None:
        self._place = place
        self._pending: Future[SealingKeys | None] | None = None

    def get(self) -> SealingKeys | None:
        """As `read`; Problem secret_unavailable also while the disk does not answer."""
        wait_s = 0.0
        if self._pending is None:
            started: Future[SealingKeys | None] = Future()
            try:
                # A daemon thread: one that hangs does not keep the process from ending.
                threading.Thread(target=self._read, args=(started,), name="latticed-key", daemon=True).start()
            except RuntimeError as error:  # the system has no thread to give
                raise _unavailable(f"the key {self._place.path} cannot be read: {error}") from error
            self._pending, wait_s = started, READ_S
        try:
            found = self._pending.result(wait_s)
        # `_pending` stays: further calls look at this read instead of starting a thread each.
        except TimeoutError as error:
            raise _unavailable(f"the key {self._place.path} cannot be read: the disk does not answer") from error
        except BaseException:
            self._pending = None
            raise
        self._pending = None
        return found

    def _read(self, answer: Future[SealingKeys | None]) -> None:
        """Runs in the thread; passes the key or the exception on to `get`."""
        try:
            answer.set_result(read(self._place))
        except BaseException as error:  # noqa: BLE001 - raised by `get`
            answer.set_exception(error)


def make(found: KeyLocation) -> SealingKeys:
    """Make a new key at a place that is ours and has none; never replaces one. Problem secret_unavailable."""
    # In the same directory, as link(2) does not cross file systems. The key appears under its name complete.
    temporary = found.path.with_name(f".{found.path.name}.{os.urandom(6).hex()}")
    try:
        found.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_EXCL and O_NOFOLLOW: an existing file or link of this name is not written to.
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with files.closing(fd):
                files.write_all(fd, base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
                # On disk before anything is sealed with it: without the key those secrets are lost.
                os.fsync(fd)
            # link(2) never replaces a file, as rename(2) would.
            with contextlib.suppress(FileExistsError):  # another process was faster: its key is used
                os.link(temporary, found.path, follow_symlinks=False)
        finally:
            os.unlink(temporary)
        # The file's own fsync does not cover its name (fsync(2)).
        files.sync_directory(found.path.parent)
    except OSError as error:
        raise _unavailable(
            f"there is no key for secrets, and none can be made at {found.path}: {error.strerror or error}",
            f"as root: head -c 32 /dev/urandom | base64 > {found.path}; chown it to the daemon's user, mode 0600",
        ) from error
    # Read back instead of returning what was written: another process may have made it first.
    if (keys := read(found)) is None:
        raise _unavailable(f"the key {found.path} is gone again")
    return keys


def derive(key: bytes) -> SealingKeys:
    """The keys in use, from the 32 bytes that are stored (RFC 5869, HKDF-SHA256, a label each). Pure."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return SealingKeys(
        id=_expanded(key, b"id")[:8].hex(), cipher=AESGCM(_expanded(key, b"seal")), binding=_expanded(key, b"bind")
    )


def _expanded(key: bytes, label: bytes) -> bytes:
    """32 bytes for this label; nothing can be learned of one label's from another's."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # No salt: the key is random already (RFC 5869, section 3.1).
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"latticed-secrets-v1 " + label).derive(key)


def _decoded(data: bytes, path: Path) -> bytes:
    """32 bytes, or the base64 of 32 bytes with white space around it."""
    # Never ambiguous: the base64 of 32 bytes has 43 characters or more.
    if len(data) == KEY_BYTES:
        return data
    try:
        # `validate`: else other characters are skipped, and a damaged key would decode to a wrong one.
        key = base64.b64decode(data.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise _unavailable(f"{path}: expected a key of {KEY_BYTES} bytes, or its base64, found {len(data)} other bytes")
    return key


def _unavailable(detail: str, hint: str = "") -> Problem:
    return Problem("secret_unavailable", detail, hint)
