"""Appends audit events to the two chains and signs their heads; used by the writer's thread only."""

from __future__ import annotations

import base64
import functools
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidSignature

from latticed.kit import clock
from latticed.ledger import audit as rows
from latticed.ledger import audit_text
from latticed.ledger.audit_text import printable
from latticed.model import chain
from latticed.model.audit import HOST_CALL, AllowedCall

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from latticed.ledger.connection import Connection
    from latticed.model import audit

_REMEMBERED: Final = 80
"""Longest text, in characters, that a form is cached with: bounds the memory that untrusted texts can take."""

_LIMITS: Final = (
    audit_text.ACTOR,
    audit_text.ACTION,
    audit_text.TARGET,
    audit_text.DECISION,
    audit_text.CODE,
    audit_text.REASON,
)
"""Of the texts of an event, in the order of their columns."""


class Tip(NamedTuple):
    """Seq and hash of the last event of a chain; 0 and `GENESIS` before the first.

    `size`: bytes of the canonical form of all events up to it, including those that retention removed.
    """

    seq: int
    hash: str
    size: int


class Chain:
    """Appends events and signs heads, within the writer's transactions.

    `seq` (the tip's) and `signed_seq` are in memory: after a rollback the caller must call `restore`. Rows are buffered
    until `flush`, because inserting many at once takes half the time.
    """

    def __init__(self, connection: Connection, *, key: Ed25519PrivateKey, name: chain.Name = chain.DECISIONS) -> None:
        self.name = name
        self.tables = rows.TABLES[name]
        self._insert = f"INSERT INTO {self.tables.events} VALUES (?,?,?,?,?,?,?,?,?,?,?)"
        self._connection = connection
        self._key = key
        self._ts = ""
        # Rows that were appended and not inserted yet.
        self._waiting: list[tuple[int | str, ...]] = []
        # The newest head that this process signed.
        self.head: chain.Head | None = None
        # The tip, field by field: a tuple for each event would take a tenth of its time.
        self.seq, self._hash, self._size = _last(connection, name)
        signed = int(connection.execute(f"SELECT coalesce(max(seq), 0) FROM {self.tables.heads}").get)
        self.signed_seq = signed if signed <= self.seq else 0  # greater: the tail was deleted; sign what is left

    @property
    def tip(self) -> Tip:
        """The newest event, buffered ones included."""
        return Tip(self.seq, self._hash, self._size)

    def begin(self, ts: str) -> None:
        """Begin a transaction: all events and heads of it get this time (RFC 3339), as they are committed together."""
        self._ts = ts

    def append(self, event: audit.Event) -> int:
        """Sanitise `event`, link it to the tip and return its seq; the row is inserted by the next `flush`."""
        # Values of a wrong type raise before anything is changed by `_link`: `commit._append` undoes nothing.
        texts = (event.actor, event.action, event.target, event.decision, event.code, event.reason)
        form = _form(texts) if max(map(len, texts)) <= _REMEMBERED else _form.__wrapped__(texts)
        return self._link(form, _object(audit_text.detail(event.detail)) if event.detail else "{}")

    def append_call(self, call: AllowedCall) -> int:
        """As `append`, in half the time: nothing in it needs to be made safe but the two names."""
        return self._link(_call_form(call.actor, call.target), f'{{"bytes":{call.size},"sha256":"{call.sha256}"}}')

    def _link(self, form: _Form, detail: str) -> int:
        """Put an event after the tip; its texts are in `form`, `detail` is canonical JSON."""
        columns, start, reason, target = form
        seq, prev, ts = self.seq + 1, self._hash, self._ts
        # Must equal chain.canonical(), and is far faster than the encoder; unit tests compare the two.
        body = f'{start}{detail},"prev":"{prev}",{reason},"seq":{seq},{target},"ts":"{ts}"}}'
        found = chain.digest(prev, body.encode("ascii"))
        self._waiting.append((seq, ts, *columns, detail, prev, found))
        self.seq, self._hash = seq, found
        self._size += len(body)
        return seq

    def flush(self) -> None:
        """Insert the buffered rows."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            if len(waiting) == 1:
                self._connection.execute(self._insert, waiting[0])
            else:
                self._connection.executemany(self._insert, waiting)

    def restore(self, tip: Tip, signed_seq: int) -> None:
        """Return to the state before a transaction or savepoint that was rolled back; drops the buffered rows."""
        # Rows not inserted yet belong to what was rolled back: the next flush must not write them.
        self._waiting.clear()
        self.seq, self._hash, self._size = tip
        self.signed_seq = signed_seq

    def sign(self) -> chain.Head | None:
        """Insert a signed head for the tip, within the caller's transaction; None if the tip already has one."""
        if self.seq == self.signed_seq:
            return None
        # In the transaction of the last event: no head is ever on disk without its event.
        ts = self._ts
        payload = chain.head_payload(seq=self.seq, ts=ts, event_hash=self._hash, chain=self.name)
        signature = base64.b64encode(self._key.sign(payload)).decode("ascii")
        head = chain.Head(seq=self.seq, hash=self._hash, ts=ts, signature=signature, chain=self.name)
        self._connection.execute(
            f"INSERT INTO {self.tables.heads} (seq, hash, ts, signature, size) VALUES (?,?,?,?,?)",
            (head.seq, head.hash, ts, signature, self._size),
        )
        self.signed_seq = head.seq
        self.head = head
        return head

    def genuine(self, head: chain.Head) -> bool:
        """Whether this host signed `head`."""
        return head.chain == self.name and signed_by(self._key.public_key(), head)

    def attest(self, head: chain.Head, *, size: int) -> chain.Checkpoint:
        """Insert a signed checkpoint for the removal of the events up to and including `head`; replaces earlier ones.

        `size`: bytes of the canonical form of all events up to `head`.
        """
        payload = chain.checkpoint_payload(seq=head.seq, ts=self._ts, event_hash=head.hash, chain=self.name)
        signature = base64.b64encode(self._key.sign(payload)).decode("ascii")
        # The new checkpoint replaces the old one: it is further on, and a chain has one beginning.
        self._connection.execute(f"DELETE FROM {self.tables.checkpoints}")
        self._connection.execute(
            f"INSERT INTO {self.tables.checkpoints} VALUES (?,?,?,?,?)",
            (head.seq, head.hash, self._ts, signature, size),
        )
        return chain.Checkpoint(seq=head.seq, hash=head.hash, ts=self._ts, signature=signature, chain=self.name)


def signed_by(key: Ed25519PublicKey, head: chain.Head) -> bool:
    """Whether `key` signed `head` as a head of the chain that it names."""
    payload = chain.head_payload(seq=head.seq, ts=head.ts, event_hash=head.hash, chain=head.chain)
    try:
        key.verify(base64.b64decode(head.signature, validate=True), payload)
    # ValueError: a signature that is no base64.
    except (InvalidSignature, ValueError):
        return False
    return True


class ChainState(NamedTuple):
    """(tip, signed_seq) of each chain at one moment, for `Chains.restore`."""

    decisions: tuple[Tip, int]
    calls: tuple[Tip, int]


class Chains:
    """Both chains: events of action `host.call` go to `calls`, all others to `decisions`."""

    def __init__(self, connection: Connection, *, key: Ed25519PrivateKey, now: clock.Clock) -> None:
        self.decisions = Chain(connection, key=key)
        self.calls = Chain(connection, key=key, name=chain.CALLS)
        self.all = (self.decisions, self.calls)
        self._now = now

    def begin(self) -> None:
        """Begin a transaction in both chains, as `Chain.begin`, at the present time."""
        ts = clock.rfc3339(self._now.wall_us())
        self.decisions.begin(ts)
        self.calls.begin(ts)

    def append(self, event: audit.Event | AllowedCall) -> int:
        """Append `event` to its chain and return its seq there."""
        if isinstance(event, AllowedCall):
            return self.calls.append_call(event)
        return (self.calls if event.action == HOST_CALL else self.decisions).append(event)

    def flush(self) -> None:
        """Insert the buffered rows of both chains."""
        self.decisions.flush()
        self.calls.flush()

    def sign(self) -> list[chain.Head]:
        """Sign both tips; returns the new heads, none for a tip that was signed already."""
        return [head for one in self.all if (head := one.sign()) is not None]

    @property
    def position(self) -> chain.Position:
        """The seqs of the newest events of both chains, buffered ones included."""
        return chain.Position(self.decisions.seq, self.calls.seq)

    @property
    def state(self) -> ChainState:
        """Take it before a transaction or savepoint, for `restore` after a rollback."""
        return ChainState((self.decisions.tip, self.decisions.signed_seq), (self.calls.tip, self.calls.signed_seq))

    def restore(self, before: ChainState) -> None:
        """Return both chains to `before`, as `Chain.restore`."""
        self.decisions.restore(*before.decisions)
        self.calls.restore(*before.calls)


class _Form(NamedTuple):
    """What events with the same texts have in common: these texts made printable and cut, and pieces of the JSON."""

    columns: tuple[str, ...]
    start: str
    """Up to the detail."""
    reason: str
    target: str


# Texts come from peers and plugins: `_REMEMBERED` and this bound what they can make it hold.
@functools.lru_cache(maxsize=1_024)
def _form(texts: tuple[str, ...]) -> _Form:
    """The form of events with this actor, action, target, decision, code and reason.

    Cached: a few of them, of plugins' calls, make up nearly all events.
    """
    columns = tuple(printable(text, limit) for text, limit in zip(texts, _LIMITS, strict=True))
    actor, action, target, decision, code, reason = map(quoted, columns)
    start = f'{{"action":{action},"actor":{actor},"code":{code},"decision":{decision},"detail":'
    return _Form(columns, start, f'"reason":{reason}', f'"target":{target}')


@functools.lru_cache(maxsize=1_024)
def _call_form(actor: str, method: str) -> _Form:
    """The form of allowed calls of this method by this plugin; such names are short."""
    return _form((actor, HOST_CALL, method, "allow", "", ""))


def _object(found: dict[str, str | int | bool]) -> str:
    """The JSON of `chain.encode` for an object without objects in it, made faster."""
    return "{" + ",".join([f"{quoted(key)}:{_value(found[key])}" for key in sorted(found)]) + "}"


def _value(value: str | int | bool) -> str:  # noqa: FBT001 - a value, not a switch
    """A value of a flat object as JSON."""
    if isinstance(value, str):
        return quoted(value)
    return chain.encode(value) if isinstance(value, bool) else str(value)


def _last(connection: Connection, name: chain.Name) -> Tip:
    """The tip as the database has it; `size` is that of the last head or checkpoint plus the events after it."""
    events, heads, checkpoints = rows.TABLES[name]
    row = connection.execute(f"SELECT seq, hash FROM {events} ORDER BY seq DESC LIMIT 1").get
    # No event at all: then the last checkpoint is the tip, so that seqs are not used again.
    if row is None:
        last = f"SELECT seq, hash, size FROM {checkpoints} ORDER BY seq DESC LIMIT 1"
        removed = connection.execute(last).get
        return Tip(*removed) if removed else Tip(0, chain.GENESIS, 0)
    seq, found = row
    # From the last place where the size was stored, so that only the events after it have to be read.
    known = f"SELECT seq, size FROM {heads} WHERE seq <= ? UNION ALL SELECT seq, size FROM {checkpoints}"
    after, size = connection.execute(known + " ORDER BY 1 DESC, 2 DESC LIMIT 1", (seq,)).get or (0, 0)
    return Tip(seq, found, size + rows.size_after(connection, after, chain=name))
