"""The metadata of a TUF repository, judged by python-tuf's client without I/O.

    files, answers = dict(kept), {}
    while True:
        try:
            repository = TufRepository(root, files, answers, now_s=now_s)
        except Wanted as wanted:
            answers[wanted.name] = …  # what is at metadata/<name> of the repository; None when it has no such file
        else:
            break

python-tuf's client asks for one file after the other and waits for each. Here it stops at the first that is not
there, and is run again with one answer more: what it accepted so far it finds in `files`, so a run costs milliseconds,
and no thread waits for a source.

Only this module imports python-tuf, and only sources of the format `tuf` import this module. It reads attributes of
`Updater` that are not public, for the moment by which is judged and for a cache that is no directory (see setup.cfg).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from latticed.kit import strict_json, text
from latticed.market.formats import ROLES
from latticed.model.errors import Problem
from latticed.trust import keys, signed_document
from latticed.trust.signed_document import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping

    from tuf.api.metadata import Key, TargetFile

_LIMITS: Final = UpdaterConfig(max_root_rotations=64, root_max_length=256 << 10)
"""Of one refresh. The rest is as python-tuf has it: 5 MB for `targets`, 32 delegations to find a target."""
_MOST_BYTES: Final = 8 << 20
"""Of any file of metadata, which is in memory: snapshot and timestamp may announce any length."""
_MOST_PATTERNS: Final = 1_000
"""Patterns of paths in one file of metadata."""
_MOST_PATTERN: Final = 256
"""Characters of one: python-tuf takes minutes to compile one of 10,000."""
_MOST_STARS: Final = 8
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""A moment before any expiry."""
_CODES: Final = (
    (exceptions.ExpiredMetadataError, "index_expired", "somebody serves old metadata, or the source is not kept up"),
    (exceptions.UnsignedMetadataError, "index_signature_invalid", "pin a new root only after asking the source"),
    (exceptions.BadVersionNumberError, "index_rolled_back", "somebody serves old metadata; the newer stays in use"),
    (exceptions.LengthOrHashMismatchError, "index_mismatch", "the source's files do not fit together: tell the source"),
    (exceptions.DownloadHTTPError, "fetch_missing", ""),
    (Exception, "index_invalid", "the source's metadata is broken: tell the source"),
)
"""Problems by what python-tuf raises, subclasses first; index_invalid for anything else."""
_REFUSALS: Final = (
    exceptions.RepositoryError,
    exceptions.DownloadError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
"""What metadata of others can make python-tuf raise: its own errors, and those of code that expected another shape."""


class Wanted(Exception):
    """The client cannot go on without this file: its name below the URL of the metadata, and its largest size."""

    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__(name)
        self.name = name
        self.max_bytes = max_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TufRole:
    """One role as its metadata has it. `signers`: the keys under which it holds, `allowed`: all that may sign it now,
    as `_key` names them. Of root: those that may sign one of the roots from the pinned one on.
    """

    version: int
    expires_s: int
    sha256: str
    signers: frozenset[str]
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TufTarget:
    """A file that the repository has: its path, where it is below the targets' URL, and its size in bytes."""

    path: str
    name: str
    length: int
    described: TargetFile

    def check(self, file: IO[bytes]) -> None:
        """Problem digest_mismatch unless these are its bytes. Blocks."""
        try:
            self.described.verify_length_and_hashes(file)
        except exceptions.LengthOrHashMismatchError as error:
            raise Problem(
                "digest_mismatch",
                f"expected {self.path[-80:]!a} as the repository's metadata describes it, found other bytes",
                "the file was changed after its metadata was signed: tell the source",
            ) from error


class TufRepository:
    """A repository whose metadata holds from the pinned root on. Making one reads and verifies it.

    `root`: the bytes of the pinned root. `files`: what is kept of the repository by name, changed to what is accepted.
    `answers`: what it has now, None for no file. `now_s`: seconds since 1970 by which expiry is judged; None: not at
    all. `offline`: `files` is all there is of the roles in ROLES.

    Raises Wanted for a file that `answers` lacks. Problems index_…, fetch_missing, and source_invalid for the root.
    """

    def __init__(
        self,
        root: bytes,
        files: MutableMapping[str, bytes],
        answers: Mapping[str, bytes | None],
        *,
        now_s: int | None,
        offline: bool = False,
    ) -> None:
        try:
            self._updater = _Updater(_sound(root), files, answers, offline=offline)
        except exceptions.RepositoryError as error:
            raise Problem(
                "source_invalid", f"expected the root of a TUF repository, found that {_words(error)}"
            ) from error
        # Not public; by the library's own clock each part of a refresh would be judged by another moment.
        trusted = self._updater._trusted_set  # noqa: SLF001
        trusted.reference_time = _ALWAYS if now_s is None else datetime.fromtimestamp(now_s, UTC)
        pinned = trusted.root
        try:
            self._updater.refresh()
        except _REFUSALS as error:
            _refuse(error)
        roots = [pinned, *(_root(files, version) for version in range(pinned.version + 1, trusted.root.version + 1))]
        self._roots = range(pinned.version, trusted.root.version + 1)
        self.roles = {
            name: _role(
                trusted.root,
                name,
                files[f"{trusted.root.version}.{name}.json" if name == Root.type else f"{name}.json"],
                of=roots if name == Root.type else roots[-1:],
            )
            for name in ROLES
        }

    def kept(self) -> dict[str, bytes]:
        """What of `files` it takes to read this again: roots from the pinned one on, and roles that were looked at."""
        wanted = {f"{version}.root.json" for version in self._roots} | self._updater.used
        return {name: data for name, data in self._updater.files.items() if name in wanted}

    def target(self, path: str) -> TufTarget | None:
        """What the repository has at the path of a target, None for nothing. Wanted, and Problems as the class."""
        try:
            found = self._updater.get_targetinfo(path)
        except _REFUSALS as error:
            _refuse(error)
        if found is None:
            return None
        # As Updater.download_target names it; that one writes to the disk itself.
        prefixed = self._updater.hashed_names
        name = found.get_prefixed_paths()[0] if prefixed else found.path
        return TufTarget(path=path, name=name, length=found.length, described=found)


class _Updater(Updater):
    """python-tuf's client with a dictionary for its cache: nothing is on disk before the whole is accepted."""

    def __init__(
        self, root: bytes, files: MutableMapping[str, bytes], answers: Mapping[str, bytes | None], *, offline: bool
    ) -> None:
        self.files = files
        self.used: set[str] = set()
        self._offline = offline
        # A directory that is none, so that the client's own look for kept roots finds nothing; see `_load_root`.
        super().__init__("/dev/null", "", fetcher=_Answers(answers), config=_LIMITS, bootstrap=root)

    @property
    def hashed_names(self) -> bool:
        """Whether files of targets have their hash in their names."""
        return bool(self._trusted_set.root.consistent_snapshot)

    def _load_root(self) -> None:
        """Kept roots first, as far as they follow on from the pinned one: another may have been pinned since."""
        trusted = self._trusted_set
        while (data := self.files.get(f"{trusted.root.version + 1}.root.json")) is not None:
            try:
                trusted.update_root(_sound(data))
            except exceptions.RepositoryError:
                break
        super()._load_root()

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        if self._offline and rolename == Root.type:
            raise exceptions.DownloadHTTPError("", 404)
        if self._offline and rolename == Timestamp.type:
            if _file(rolename) not in self.files:
                raise Wanted(_file(rolename), 0)
            return self._load_local_metadata(rolename)
        return super()._download_metadata(rolename, length, version)

    def _load_local_metadata(self, rolename: str) -> bytes:
        data = self.files.get(_file(rolename))
        if data is None:
            raise FileNotFoundError(rolename)
        self.used.add(_file(rolename))
        return _sound(data)

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        self.used.add(_file(rolename))
        self.files[_file(rolename)] = data

    def _persist_root(self, version: int, data: bytes) -> None:
        self.files[f"{version}.root.json"] = data

    def _update_root_symlink(self) -> None:
        """The newest root is found by its number."""


class _Answers(FetcherInterface):
    """What was fetched before by name, in place of a network."""

    def __init__(self, answers: Mapping[str, bytes | None]) -> None:
        self._answers = answers

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = url.lstrip("/")
        if name not in self._answers:
            raise Wanted(name, min(max_length, _MOST_BYTES))
        data = self._answers[name]
        if data is None:
            raise exceptions.DownloadHTTPError(f"there is no {name}", 404)
        return _sound(data)

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError  # what python-tuf would fetch with; files of targets are fetched by the market


def _sound(data: bytes) -> bytes:
    """`data`, if it is metadata that can be read in one way only; RepositoryError otherwise.

    Besides what python-tuf refuses: JSON that parsers read differently, numbers that are none, moments in other
    spellings, weak Ed25519 keys, one key under several names, which would count several times for a threshold, and
    patterns of paths that take long to match.
    """
    try:
        raw = strict_json.loads(data, integers_only=True)
    except strict_json.InvalidJson as error:
        raise exceptions.RepositoryError(f"expected strict JSON: {error}") from error
    signed = raw.get("signed") if isinstance(raw, dict) else None
    if not isinstance(signed, dict):
        raise exceptions.RepositoryError(f"expected an object with `signed`, found {shown(raw)}")
    if signed_document.moment(signed.get("expires")) is None:
        expected = "a moment in UTC such as 2026-06-15T00:00:00Z"
        raise exceptions.RepositoryError(f"expires: expected {expected}, found {shown(signed.get('expires'))}")
    _check_numbers(signed)
    for holder in (signed, signed.get("delegations")):
        _check_keys(holder.get("keys") if isinstance(holder, dict) else None)
    _check_patterns(signed.get("delegations"))
    return data


def _check_numbers(value: Any) -> None:
    """RepositoryError where something stands for a number: python-tuf takes true and null for 1."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name in {"version", "threshold", "length"} and type(one) is not int:
                raise exceptions.RepositoryError(f"{name}: expected a number, found {shown(one)}")
            if name != "custom":
                _check_numbers(one)
    elif isinstance(value, list):
        for one in value:
            _check_numbers(one)


def _check_keys(found: Any) -> None:
    """RepositoryError for Ed25519 keys that anybody can sign under, and for one key under two names."""
    if not isinstance(found, dict):
        return
    seen: set[str] = set()
    for one in found.values():
        values = one.get("keyval") if isinstance(one, dict) else None
        public = values.get("public") if isinstance(values, dict) else None
        if not isinstance(public, str):
            continue  # of another kind, or python-tuf refuses it
        # Without any space, as `fromhex` passes over it within a key, too.
        value = "".join(public.split())
        value = value.lower() if one.get("keytype") == "ed25519" else value
        if value in seen:
            raise exceptions.RepositoryError(f"expected each key under one name, found {shown(public)} under two")
        seen.add(value)
        if one.get("keytype") == "ed25519":
            try:
                keys.check_public(bytes.fromhex(public))
            except ValueError as error:  # BadText is one
                raise exceptions.RepositoryError(f"keys: {error}") from error


def _check_patterns(delegations: Any) -> None:
    """RepositoryError for patterns of paths that would keep a thread busy: each is made a regular expression."""
    roles = delegations.get("roles") if isinstance(delegations, dict) else None
    lists = [one.get("paths") for one in roles if isinstance(one, dict)] if isinstance(roles, list) else []
    patterns = [one for found in lists if isinstance(found, list) for one in found if isinstance(one, str)]
    if len(patterns) > _MOST_PATTERNS:
        raise exceptions.RepositoryError(f"paths: expected at most {_MOST_PATTERNS} patterns, found {len(patterns)}")
    for one in patterns:
        if len(one) > _MOST_PATTERN or one.count("*") > _MOST_STARS:
            expected = f"at most {_MOST_PATTERN} characters and {_MOST_STARS} stars"
            raise exceptions.RepositoryError(f"paths: expected {expected}, found {shown(one)}")


def _root(files: Mapping[str, bytes], version: int) -> Root:
    return Metadata[Root].from_bytes(files[f"{version}.root.json"]).signed


def _role(root: Root, name: str, data: bytes, *, of: list[Root]) -> TufRole:
    """What is remembered of a role; `data` is its verified metadata, `of` the roots that say who may sign it."""
    found: Metadata[Any] = Metadata.from_bytes(data)
    held = root.get_verification_result(name, found.signed_bytes, found.signatures).signed
    allowed = [one.get_key(keyid) for one in of for keyid in one.roles[name].keyids]
    return TufRole(
        version=found.signed.version,
        expires_s=int(found.signed.expires.timestamp()),
        sha256=hashlib.sha256(found.signed_bytes).hexdigest(),
        signers=frozenset(map(_key, held.values())),
        allowed=frozenset(map(_key, allowed)),
    )


def _key(key: Key) -> str:
    """A name of a key, 32 bytes in base64, that says what it is: those in the metadata are chosen by whoever writes it.

    Of an Ed25519 key the key itself, as `trust.keys` writes it.
    """
    if key.keytype == "ed25519":
        return keys.encode_base64(bytes.fromhex(key.keyval["public"]))
    plain = json.dumps([key.keytype, key.scheme, key.keyval], sort_keys=True)
    return keys.encode_base64(hashlib.sha256(plain.encode()).digest())


def _file(role: str) -> str:
    """The name under which the metadata of a role is kept: a role that is delegated may be called `2.root`."""
    return f"{role}.json" if role in ROLES else f"delegated/{role}.json"


def _refuse(error: Exception) -> NoReturn:
    """Raise the Problem that an error of python-tuf means."""
    code, hint = next((code, hint) for kind, code, hint in _CODES if isinstance(error, kind))
    raise Problem(
        code, f"expected metadata of a TUF repository that holds, found that {_words(error)}", hint
    ) from error


def _words(error: Exception) -> str:
    """What python-tuf says, which may have names of roles in it; its cause where it says nothing itself."""
    said = error.__cause__ if error.__cause__ is not None and "deserialize" in str(error) else error
    return text.sanitise(str(said), 200)
