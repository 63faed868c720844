"""Hosts that join a fleet by an invitation, with their keys, as `latticed-fleet join` does it."""

from __future__ import annotations

import asyncio
import contextlib
import time

from latticed.fleet import deployment, documents, enrolment, nkeys, subjects
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_engine import NatsEngine
from latticed.trust import key_files
from tests.house.processes import PATIENCE_S


class Host:
    """A host with an invitation, its keys, and what it connects with."""

    def __init__(self, fleet, operator, name, place):
        self.fleet, self.operator, self.name, self.place = fleet, operator, name, place
        self.key = key_files.generate()
        self.user = nkeys.Key.generate(nkeys.KeyKind.USER)

    @property
    def public(self):
        return key_files.public_text(self.key)

    def invited(self, **fields):
        """An invitation for this name, as the operator makes it."""
        now_s = int(time.time())
        key = key_files.generate()
        plain = {
            "fleet": self.operator.fleet,
            "token": enrolment.nonce_of(key_files.public_text(key)),
            "addresses": ("tls://fleet.example.org:4222",),
            "certificates": "-----BEGIN CERTIFICATE-----\n",
            "operators": (self.operator.public,),
            "node": self.name,
            "labels": {"role": "web"},
            "expires": now_s + 3_600,
        }
        token = documents.EnrolmentToken(**{**plain, **fields})
        identities = self.fleet.identities
        credentials = deployment.invitation_credentials(
            identities.enrol_signer, identities.nodes.public, token.token, now_s=now_s, expires_s=now_s + 3_600
        )
        made = enrolment.invite(self.operator.key, token=token, key=key, credentials=credentials)
        return enrolment.read_invitation(made, now_s=now_s)

    async def ask(self, invited):
        """The controller's answer to this host's request to join. Where none comes, as while the controller's lease is
        lost on a busy machine, it asks again, as `latticed-fleet join` does.
        """
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(EngineUnavailable):
                    return await self.ask_once(invited)

    async def ask_once(self, invited):
        """The controller's answer; EngineUnavailable where none comes."""
        nonce = invited.document.token
        path = self.place / f"{nonce}.creds"
        path.write_bytes(invited.credentials.text())
        async with self.fleet.connected(nonce, credentials=path) as connection:
            asked = enrolment.request(invited, self.public, self.user.public)
            return self.answered((await connection.request(subjects.enrolment(nonce), asked)).data)

    def answered(self, data):
        return enrolment.answered(
            data,
            fleet=self.operator.fleet,
            operators=(self.operator.public,),
            node=self.name,
            node_key=self.public,
            user=self.user.public,
            now_s=int(time.time()),
        )

    @contextlib.asynccontextmanager
    async def connected(self, granted):
        """As a node, by the credentials that it was given."""
        path = self.place / f"{self.name}.creds"
        own = nkeys.UserCredentials(token=granted.jwt, key=self.user, name=self.name, expires_s=granted.expires)
        path.write_bytes(own.text())
        async with self.fleet.connected(self.name, credentials=path) as connection:
            yield NatsEngine(connection, self.name)
