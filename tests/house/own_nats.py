"""A nats-server that somebody runs already, with an operator, accounts and a configuration of his own.

Nothing of it is made by `latticectl fleet init`. He gives the public keys of two accounts, and puts into these what he
is told that they have to have (`Own.granting`); by his own hand, so he can leave something out or give too much.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from latticed.fleet import nkeys, subjects
from latticed.fleet.nats_connection import NatsEndpoint
from tests.house import ports
from tests.house.nats_servers import NatsServer

HANDSHAKE = "handshake_first: auto"
"""Clients of the fleet begin with TLS; those of before need not."""


def _accounts() -> dict[str, nkeys.Key]:
    return {name: nkeys.Key.generate(nkeys.KeyKind.ACCOUNT) for name in ("SYSTEM", "SHOP", "FLEET", "HOSTS")}


@dataclass
class Own:
    """`FLEET` is the account of controllers, `HOSTS` that of nodes; `SHOP` is there for something else."""

    place: Path
    server: NatsServer
    operator: nkeys.Key = field(default_factory=lambda: nkeys.Key.generate(nkeys.KeyKind.OPERATOR))
    accounts: dict[str, nkeys.Key] = field(default_factory=_accounts)

    @property
    def ca(self) -> Path:
        return self.place / "own-ca.pem"

    def granting(
        self,
        wanted: Path,
        *,
        change: Callable[[dict[str, dict[str, Any]]], None] = lambda _: None,
        sync: str = "always",
    ) -> None:
        """Write the configuration: accounts as the files below `wanted` ask, changed by whoever runs this."""
        now_s = int(time.time())
        claims = {
            "FLEET": json.loads((wanted / "CTRL.json").read_text()),
            "HOSTS": json.loads((wanted / "NODES.json").read_text()),
            "SHOP": {"limits": {"conn": 10, "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1}},
            "SYSTEM": {"limits": {"conn": -1, "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1}},
        }
        change(claims)
        tokens = {
            key.public: nkeys.token(
                self.operator, key.public, name, {"type": "account", "version": 2, **claims[name]}, now_s=now_s
            )
            for name, key in self.accounts.items()
        }
        system = self.accounts["SYSTEM"].public
        operator = nkeys.token(
            self.operator,
            self.operator.public,
            "somebody",
            {"type": "operator", "version": 2, "system_account": system},
            now_s=now_s,
        )
        self.server.configuration.write_text(
            "\n".join(
                [
                    f"host: 127.0.0.1\nport: {self.server.port}\nserver_name: somebodys\nmax_payload: 2MB",
                    f'operator: "{operator}"\nsystem_account: {system}\nresolver: MEMORY',
                    "resolver_preload: {",
                    *(f"  {account}: {token}" for account, token in tokens.items()),
                    "}",
                    f'jetstream: {{ store_dir: "{self.place}/streams", sync_interval: {sync} }}',
                    f'tls: {{ cert_file: "{self.place}/own.pem", key_file: "{self.place}/own.key", {HANDSHAKE} }}',
                ]
            )
        )

    def user(self, account: str, name: str, **may: Any) -> Path:
        """A file with credentials of a user that the account itself signs, as its owner makes them."""
        key = nkeys.Key.generate(nkeys.KeyKind.USER)
        plain = {"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        token = nkeys.token(self.accounts[account], key.public, name, {**plain, **may}, now_s=int(time.time()))
        path = self.place / f"{account}-{name}.creds"
        path.write_bytes(nkeys.UserCredentials(token=token, key=key, name=name, expires_s=None).text())
        path.chmod(0o600)
        return path

    def endpoint(self, credentials: Path, name: str) -> NatsEndpoint:
        return NatsEndpoint(
            servers=(self.server.url,),
            tls=ssl.create_default_context(cafile=str(self.ca)),
            credentials=credentials,
            name=name,
            inbox=subjects.inbox(name),
        )


def configured(place: Path) -> Own:
    """With certificates of its own, not started."""
    place.mkdir(parents=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(place / "own-ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(place / "own.key")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(place / "own.pem", append=number > 0)
    return Own(place, NatsServer("somebodys", ports.free(), place, place / "somebodys.conf"))


@contextlib.contextmanager
def started(own: Own) -> Iterator[Own]:
    own.server.start()
    try:
        yield own
    finally:
        own.server.stop()
