"""The key-value rows against a dictionary."""

from __future__ import annotations

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.kit.clock import SystemClock
from latticed.ledger import Transaction, kv, migrations
from latticed.ledger.chain import Chains
from latticed.model.errors import Problem

QUOTA = kv.KvQuota(value_bytes=6, keys=5, total_bytes=40)
alphabet = st.sampled_from(["a", "b", "é", "\ud7ff", "\ue000", "\U0010ffff", "%", "_"])
names = st.text(alphabet, max_size=3)
steps = st.tuples(st.sampled_from(["put", "delete"]), names, st.binary(max_size=8))


@settings(deadline=None, max_examples=200)
@given(done=st.lists(steps, max_size=30), prefix=names, after=names, limit=st.integers(0, 5))
def test_kv_rows_behave_like_a_dictionary_with_a_quota(
    done: list[tuple[str, str, bytes]], prefix: str, after: str, limit: int
) -> None:
    """Values, usage, quota and listing by prefix equal a model's after any steps; versions only grow."""
    connection = apsw.Connection(":memory:")
    try:
        migrations.migrate(connection)
        key = Ed25519PrivateKey.from_private_bytes(bytes(32))
        tx = Transaction(connection, Chains(connection, key=key, now=SystemClock()))
        model: dict[str, bytes] = {}
        versions: list[int] = []
        kv.put(tx, "other", "a", b"1", QUOTA)
        for verb, name, value in done:
            if verb == "delete":
                assert kv.delete(tx, "b", name) == (model.pop(name, None) is not None)
                continue
            grown = {**model, name: value}
            fits = len(value) <= QUOTA.value_bytes and (
                len(grown) <= QUOTA.keys and (size(grown) <= QUOTA.total_bytes or size(grown) <= size(model))
            )
            if fits:
                versions.append(kv.put(tx, "b", name, value, QUOTA))
                assert kv.entry(tx, "b", name) == (value, versions[-1])
                model = grown
            else:
                with pytest.raises(Problem, match="quota_exceeded"):
                    kv.put(tx, "b", name, value, QUOTA)
        assert kv.usage(tx, "b") == (len(model), size(model))
        assert versions == sorted(set(versions)), "a version that a value had is given to no other one"
        assert all((kv.version(tx, "b", name) in versions) == (name in model) for _, name, _ in done)
        assert {name: kv.get(tx, "b", name) for name in model} == model
        wanted = sorted(name for name in model if name.startswith(prefix) and name > after)
        assert kv.keys(tx, "b", prefix, after, limit) == wanted[:limit]
    finally:
        connection.close()


def size(model: dict[str, bytes]) -> int:
    return sum(len(name.encode()) + len(value) for name, value in model.items())
