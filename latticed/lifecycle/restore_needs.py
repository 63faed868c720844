"""What a restored state needs besides itself: bundles on disk, the trust policy, the secrets' key, settings.

A stored pair runs only while a bundle of its id verifies in a plugin directory. On a machine that has none, the pair is
copied into the daemon's own bundle directory, which is always scanned. All else that is missing is only reported, for
the operator to provide. Blocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from typing import TYPE_CHECKING, Final

from latticed.bundle import decode, read, write
from latticed.bundle.refusal import BundleRefused
from latticed.catalog import root as roots
from latticed.host.secret import key as secret_key
from latticed.lifecycle.policy import PolicyKeeper
from latticed.model.errors import Problem
from latticed.model.lifecycle import Status
from latticed.model.verdict import Refused, Verified
from latticed.settings import describe
from latticed.trust import payload, verify
from latticed.trust.policy import Revoked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from latticed.lifecycle.recovery import RecoveryPlace
    from latticed.model.lifecycle import Record
    from latticed.settings import Settings
    from latticed.trust.policy import TrustPolicy

BUNDLES: Final = "bundles"
"""The daemon's own bundle directory, below the state directory."""
_OF_THE_MACHINE: Final = frozenset({"plugin_dir", "state_dir", "runtime_dir", "trust"})
"""Paths: they are expected to differ on another machine, so a backup does not carry them."""


def put_bundles(place: RecoveryPlace, store: Path, records: Collection[Record]) -> tuple[Path, ...]:
    """Copy from `store` the pairs of `records` that no plugin directory has; the directories made.

    A pair is there already if a bundle of its id verifies, or if any bundle has its identity. OSError when copying
    fails; then none of the new directories is left.
    """
    policy = _policy(place).current
    kept = [record for record in records if not record.forgotten and (store / record.facts.identity).is_dir()]
    there = _there(place, policy) if kept else frozenset()
    wanted = [record for record in kept if not there & {record.id, record.facts.identity}]
    made: list[Path] = []
    try:
        made.extend(_put(place.state_dir / BUNDLES, record, store / record.facts.identity) for record in wanted)
    # BaseException: also on Ctrl-C nothing may be left, for the state has not been swapped yet.
    except BaseException:
        take_back(made)
        raise
    return tuple(made)


def take_back(made: Iterable[Path]) -> None:
    """Remove the directories that `put_bundles` made; what cannot be removed is left."""
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)


def chosen(settings: Settings) -> tuple[tuple[str, str], ...]:
    """(key, JSON) of the settings that are neither defaults nor paths of this machine."""
    return tuple(
        (key, _json(value))
        for key, value, origin in describe(settings)
        if origin != "default" and key not in _OF_THE_MACHINE
    )


def _json(value: object) -> str:
    """The value of a setting; tables within it (sources, rules) are dataclasses."""
    return json.dumps(value, default=dataclasses.asdict)


def missing(
    place: RecoveryPlace,
    settings: Settings,
    *,
    records: Iterable[Record],
    sealed: Mapping[str, int],
    were_set: Iterable[tuple[str, str]],
) -> Iterator[str]:
    """Sentences for the operator: what differs here from the host that was backed up.

    `sealed`: number of secrets by id of the key that sealed them. `were_set`: what `chosen` returned on that host.
    """
    # Without a policy no pair verifies: one sentence instead of one for each plugin.
    policy = _policy(place)
    if policy.problem is not None:
        yield f"the trust policy: {policy.problem.reason}; until it is there nothing verifies"
    else:
        store = place.store()
        for record in records:
            if record.status is Status.ACTIVE:
                # A built-in follows latticed at the next start: what is judged is what this latticed brings.
                identity = store.builtins.identity_of(record.id) or record.facts.identity
                found = store.verify(identity, policy.current, host_version=place.version)
                # Only active plugins: the others start nothing, and are judged when an operator decides about them.
                if isinstance(found, Refused):
                    yield f"{record.id} does not verify here: {found.code}: {found.reason}"
    # Secrets are in the ledger, sealed; the key that opens them is not in a backup.
    yield from _missing_key(settings, sealed)
    here = {key: _json(value) for key, value, _ in describe(settings)}
    for key, value in were_set:
        if here.get(key) != value:
            yield f"the setting {key} was {value}, here it is {here.get(key, 'unknown')}"


def _missing_key(settings: Settings, sealed: Mapping[str, int]) -> Iterator[str]:
    """A sentence when the secrets' key is not here, or is not the one that sealed all of them."""
    if not sealed:
        return
    total = sum(sealed.values())
    try:
        where = secret_key.place(settings, os.environ)
        keys = secret_key.read(where)
    except Problem as problem:
        yield f"the key of {total} secrets: {problem.reason}"
        return
    if keys is None:
        otherwise = f"unless the service manager passes it as the credential {secret_key.CREDENTIAL}"
        yield f"the key of {total} secrets: expected it at {where.path}, found no file ({otherwise})"
    elif other := total - sealed.get(keys.id, 0):
        yield f"the key of {other} secrets: {where.path} is another one than they were sealed with"


def _policy(place: RecoveryPlace) -> PolicyKeeper:
    """The trust policy of this machine, without revocations of any ledger: none is open here."""
    keeper = PolicyKeeper(place.trust, owners=frozenset({0, os.geteuid()}), remembered=Revoked())
    keeper.look(always=True)
    return keeper


def _there(place: RecoveryPlace, policy: TrustPolicy) -> frozenset[str]:
    """Ids of bundles on disk that verify, and identities of all bundles on disk."""
    found: set[str] = set()
    for directory in (place.plugin_dir, place.state_dir / BUNDLES):
        with contextlib.suppress(Problem, OSError):  # a missing directory has no bundles
            root = roots.open_root(directory)
            try:
                for name in filter(roots.may_be_bundle, os.listdir(root.fd)):
                    with contextlib.suppress(BundleRefused, OSError, ValueError):
                        found |= _claims(place, policy, root, name)
            finally:
                root.close()
    return frozenset(found)


def _claims(place: RecoveryPlace, policy: TrustPolicy, root: roots.Root, name: str) -> set[str]:
    """The identity of one bundle, and its id if it verifies; raises what reading or decoding it raises."""
    with read.open_bundle(name, beneath=root.fd, limits=place.limits, owners=root.owners) as source:
        raw, manifest = decode.decode(source.manifest())
        verdict = verify.verify(source, policy, host_version=place.version)
    identity = payload.identity(payload.signing_payload(raw, manifest))
    return {identity, manifest.id} if isinstance(verdict, Verified) else {identity}


def _put(directory: Path, record: Record, pair: Path) -> Path:
    """Write a bundle named by its id, else by id and identity when that name is taken; the directory made."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for name in (record.id, f"{record.id}-{record.facts.identity[:12]}"):
        # The id may be the name of a bundle that was refused: it stays, and the pair gets a longer name.
        with contextlib.suppress(FileExistsError):
            manifest, artifact = ((pair / part).read_bytes() for part in (read.MANIFEST, read.ARTIFACT))
            write.write_bundle(directory / name, manifest, artifact)
            return directory / name
    # Both names are taken: EEXIST (17), as mkdir(2) would report it.
    raise FileExistsError(17, os.strerror(17), str(directory / record.id))
