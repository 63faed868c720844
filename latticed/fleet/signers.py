"""Who signs in the message system: the keys of a deployment, and those that sign its users. Text and values only."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from latticed.fleet import nkeys
from latticed.kit import strict_json
from latticed.model.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """What signs users of the accounts `control` and `nodes` (public keys): of the identities of a deployment, or of a
    message system with an operator of its own, who has put the public halves into these accounts.
    """

    control_signer: nkeys.Key
    node_signer: nkeys.Key
    enrol_signer: nkeys.Key
    control: str
    nodes: str

    @staticmethod
    def generate(*, control: str, nodes: str) -> Signers:
        """New ones for these accounts; Problem bad_request."""
        kind = nkeys.KeyKind.ACCOUNT
        try:
            for account in (control, nodes):
                nkeys.check_public(account, kind)
        except nkeys.BadKey as error:
            raise Problem("bad_request", f"expected the public keys of two accounts (A…): {error}") from error
        if control == nodes:
            raise Problem("bad_request", "expected two accounts, found one: nodes would reach the streams")
        return Signers(
            control_signer=nkeys.Key.generate(kind),
            node_signer=nkeys.Key.generate(kind),
            enrol_signer=nkeys.Key.generate(kind),
            control=control,
            nodes=nodes,
        )

    @staticmethod
    def parse(data: bytes) -> Signers:
        """What `text` wrote; Problem key_invalid."""
        try:
            found = strict_json.loads(data)
            names = [one.name for one in fields(Signers)]
            if not isinstance(found, dict) or sorted(found) != sorted(names):
                raise nkeys.BadKey(f"expected an object with {', '.join(names)}")
            return Signers(
                control_signer=nkeys.Key.from_seed(str(found["control_signer"])),
                node_signer=nkeys.Key.from_seed(str(found["node_signer"])),
                enrol_signer=nkeys.Key.from_seed(str(found["enrol_signer"])),
                control=nkeys.check_public(str(found["control"]), nkeys.KeyKind.ACCOUNT),
                nodes=nkeys.check_public(str(found["nodes"]), nkeys.KeyKind.ACCOUNT),
            )
        except (strict_json.InvalidJson, nkeys.BadKey) as error:
            raise Problem("key_invalid", f"expected the signing keys of two accounts: {error}") from error

    def text(self) -> bytes:
        """All seeds, and the accounts: a secret file."""
        seeds = {name: getattr(self, name).seed for name in ("control_signer", "node_signer", "enrol_signer")}
        return json.dumps({**seeds, "control": self.control, "nodes": self.nodes}, indent=1).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """The keys of a deployment. `operator`, `system`, `control` and `nodes` stay offline: what the key `nodes` signs
    itself is held by no template (the server's default permissions do not hold it either). A controller that enrols
    nodes holds `node_signer`; who makes invitations holds `enrol_signer`.
    """

    operator: nkeys.Key
    system: nkeys.Key
    control: nkeys.Key
    nodes: nkeys.Key
    control_signer: nkeys.Key
    node_signer: nkeys.Key
    enrol_signer: nkeys.Key

    @staticmethod
    def generate() -> Identities:
        """New ones, from the system's source of random numbers."""
        account = nkeys.KeyKind.ACCOUNT
        return Identities(
            operator=nkeys.Key.generate(nkeys.KeyKind.OPERATOR),
            system=nkeys.Key.generate(account),
            control=nkeys.Key.generate(account),
            nodes=nkeys.Key.generate(account),
            control_signer=nkeys.Key.generate(account),
            node_signer=nkeys.Key.generate(account),
            enrol_signer=nkeys.Key.generate(account),
        )

    @staticmethod
    def parse(data: bytes) -> Identities:
        """What `text` wrote; Problem `key_invalid`."""
        names = [one.name for one in fields(Identities)]
        try:
            seeds = strict_json.loads(data)
            if not isinstance(seeds, dict) or sorted(seeds) != sorted(names):
                raise nkeys.BadKey(f"expected an object with {', '.join(names)}")
            found = {name: nkeys.Key.from_seed(str(seeds[name])) for name in names}
            for name, key in found.items():
                if (key.kind is nkeys.KeyKind.OPERATOR) != (name == "operator"):
                    raise nkeys.BadKey(f"{name}: expected another kind of key")
        except (strict_json.InvalidJson, nkeys.BadKey) as error:
            raise Problem("key_invalid", f"expected the identities of a deployment: {error}") from error
        return Identities(**found)

    @property
    def signers(self) -> Signers:
        """What signs users of the accounts of controllers and nodes."""
        return Signers(
            control_signer=self.control_signer,
            node_signer=self.node_signer,
            enrol_signer=self.enrol_signer,
            control=self.control.public,
            nodes=self.nodes.public,
        )

    def text(self) -> bytes:
        """All seeds: a secret file."""
        return json.dumps({one.name: getattr(self, one.name).seed for one in fields(self)}, indent=1).encode()
