"""Publish a directory as a TUF repository: tuf_repository.py KEYS SITE REPOSITORY [--timestamp | --rotate ROLE].

KEYS        a directory for the private keys of the four roles, made when they are missing; back it up, serve it never
SITE        plugins.json and what `latticectl index add` has put beside it
REPOSITORY  what is served: metadata/ and targets/; hosts pin metadata/1.root.json

--timestamp signs a new timestamp alone, for a timer: hosts install nothing once the last one has expired. It needs
timestamp.pem and no other key, so that the others can be elsewhere. --rotate has a new key sign the role from now on.
"""

import argparse
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

DAYS = {"root": 365, "targets": 90, "snapshot": 30, "timestamp": 7}


def made(path: Path) -> CryptoSigner:
    """The key in a file, which is made when it is missing."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    return CryptoSigner(serialization.load_pem_private_key(path.read_bytes(), None))


def newest(metadata: Path, role: str) -> Metadata | None:
    """The last metadata of a role that was written, None for none."""
    if role == "timestamp":
        found = [path for path in (metadata / "timestamp.json",) if path.exists()]
    else:
        found = sorted(metadata.glob(f"*.{role}.json"), key=lambda path: int(path.name.split(".")[0]))
    return Metadata.from_file(str(found[-1])) if found else None


def write(metadata: Path, document: Metadata, role: str, *signers: CryptoSigner) -> bytes:
    """Sign and write the next version of a role, in one step."""
    document.signed.expires = datetime.now(UTC) + timedelta(days=DAYS[role])
    for number, signer in enumerate(signers):
        document.sign(signer, append=number > 0)
    data = document.to_bytes()
    name = "timestamp.json" if role == "timestamp" else f"{document.signed.version}.{role}.json"
    (metadata / ".new").write_bytes(data)
    (metadata / ".new").replace(metadata / name)
    return data


def next_of(metadata: Path, role: str, first: Root | Targets | Snapshot | Timestamp) -> Metadata:
    """What a role says next: as it was, one version on."""
    document = newest(metadata, role)
    if document is None:
        return Metadata(first)
    document.signed.version += 1
    return document


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("keys", type=Path)
parser.add_argument("site", type=Path)
parser.add_argument("repository", type=Path)
parser.add_argument("--timestamp", action="store_true", help="sign a new timestamp, and nothing else")
parser.add_argument("--rotate", choices=DAYS, help="have a new key sign this role")
args = parser.parse_args()
metadata, targets = args.repository / "metadata", args.repository / "targets"
for directory in (args.keys, metadata, targets):
    directory.mkdir(parents=True, exist_ok=True)

if not args.timestamp:
    old = made(args.keys / "root.pem")
    # A new key is beside the old one until the root that names it is written.
    files = {role: args.keys / (f"{role}.new.pem" if role == args.rotate else f"{role}.pem") for role in DAYS}
    signers = {role: made(path) for role, path in files.items()}
    root = next_of(metadata, "root", Root(consistent_snapshot=True))
    if args.rotate or root.signed.version == 1:
        for role in [args.rotate] if args.rotate else DAYS:
            for keyid in list(root.signed.roles[role].keyids):
                root.signed.revoke_key(keyid, role)
            root.signed.add_key(signers[role].public_key, role)
        # Hosts take the next root when the keys of the one before have signed it as well.
        write(metadata, root, "root", *{one.public_key.keyid: one for one in (old, signers["root"])}.values())
        if args.rotate:
            files[args.rotate].replace(args.keys / f"{args.rotate}.pem")

    listed = next_of(metadata, "targets", Targets())
    listed.signed.targets = {}
    for path in sorted(path for path in args.site.rglob("*") if path.is_file()):
        target = TargetFile.from_file(path.relative_to(args.site).as_posix(), str(path), ["sha256"])
        listed.signed.targets[target.path] = target
        for name in target.get_prefixed_paths():
            (targets / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, targets / name)
    data = write(metadata, listed, "targets", signers["targets"])

    snapshot = next_of(metadata, "snapshot", Snapshot())
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(listed.signed.version, data, ["sha256"])
    data = write(metadata, snapshot, "snapshot", signers["snapshot"])

timestamp = next_of(metadata, "timestamp", Timestamp())
if not args.timestamp:
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
# Last: until hosts see it, the repository is as it was.
write(metadata, timestamp, "timestamp", made(args.keys / "timestamp.pem"))
