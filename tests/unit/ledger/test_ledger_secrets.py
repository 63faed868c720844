"""Rows of secrets and their bindings, and labels of the node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latticed.ledger import Ledger, labels, secrets
from latticed.model.errors import Problem

ROW = secrets.SecretRow(
    owner="operator", name="TOKEN", version=1, key_id="ab", nonce=b"n" * 12, sealed=b"\x00s", created_at=1, updated_at=2
)
BINDING = secrets.Binding(owner="operator", name="TOKEN", plugin_id="acme.demo", mac=b"m" * 32)


async def test_secret_row_round_trips(ledger: Ledger) -> None:
    """A later put replaces the row; owners do not share names."""
    await ledger.write(lambda tx: secrets.put(tx, ROW))
    newer = replace(ROW, version=2, sealed=b"")
    await ledger.write(lambda tx: secrets.put(tx, newer))
    other = replace(ROW, owner="another")
    await ledger.write(lambda tx: secrets.put(tx, other))
    assert ledger.read(secrets.load_all) == (other, newer)
    assert ledger.read(lambda db: secrets.get(db, "operator", "TOKEN")) == newer
    assert ledger.read(lambda db: secrets.get(db, "operator", "ABSENT")) is None


async def test_deleting_a_secret_removes_its_bindings(ledger: Ledger) -> None:
    """Bindings of other secrets stay. Binding a missing secret is refused."""
    with pytest.raises(Problem) as caught:
        await ledger.write(lambda tx: secrets.bind(tx, BINDING))
    assert caught.value.code == "not_found"
    for row, binding in ((ROW, BINDING), (replace(ROW, name="OTHER"), replace(BINDING, name="OTHER"))):
        await ledger.write(lambda tx, row=row: secrets.put(tx, row))  # type: ignore[misc]
        await ledger.write(lambda tx, binding=binding: secrets.bind(tx, binding))  # type: ignore[misc]
    assert ledger.read(lambda db: secrets.binding(db, "operator", "TOKEN", "acme.demo")) == BINDING.mac
    assert await ledger.write(lambda tx: secrets.delete(tx, "operator", "TOKEN")) is True
    assert await ledger.write(lambda tx: secrets.delete(tx, "operator", "TOKEN")) is False
    assert ledger.read(lambda db: secrets.bindings(db, "operator")) == [("OTHER", "acme.demo")]
    assert ledger.read(lambda db: secrets.binding(db, "operator", "TOKEN", "acme.demo")) is None


async def test_secret_quotas_refuse_new_rows_but_not_replacements(ledger: Ledger) -> None:
    """One more is refused, replacing one is not."""

    def fill(tx) -> None:
        for number in range(secrets.MAX_SECRETS):
            secrets.put(tx, replace(ROW, name=f"N{number}"))

    await ledger.write(fill)
    await ledger.write(lambda tx: secrets.put(tx, replace(ROW, name="N1", version=9)))
    with pytest.raises(Problem) as caught:
        await ledger.write(lambda tx: secrets.put(tx, ROW))
    assert caught.value.code == "quota_exceeded"
    assert ledger.read(secrets.count) == secrets.MAX_SECRETS


async def test_renaming_a_plugin_replaces_bindings_of_the_new_name(ledger: Ledger) -> None:
    """Two publishers may take over an id from each other more than once."""
    await ledger.write(lambda tx: secrets.put(tx, ROW))
    for plugin, mac in (("acme.demo", b"new"), ("acme.demo@acme", b"old")):
        await ledger.write(lambda tx, p=plugin, m=mac: secrets.bind(tx, replace(BINDING, plugin_id=p, mac=m)))  # type: ignore[misc]
    assert await ledger.write(lambda tx: secrets.rename_plugin(tx, "acme.demo", "acme.demo@acme")) == 1
    assert ledger.read(lambda db: secrets.bindings(db, "operator")) == [("TOKEN", "acme.demo@acme")]
    assert ledger.read(lambda db: secrets.binding(db, "operator", "TOKEN", "acme.demo@acme")) == b"new"


async def test_node_labels_are_set_and_removed_in_one_change(ledger: Ledger) -> None:
    """A change beyond the quota has no effect at all."""
    assert await ledger.write(lambda tx: labels.change(tx, {"b": "2", "a": "1", "c": None}, most=2)) == {
        "a": "1",
        "b": "2",
    }
    with pytest.raises(Problem) as caught:
        await ledger.write(lambda tx: labels.change(tx, {"c": "3", "a": "9"}, most=2))
    assert caught.value.code == "quota_exceeded"
    assert ledger.read(labels.load) == {"a": "1", "b": "2"}
    assert await ledger.write(lambda tx: labels.change(tx, {"a": None, "c": "3"}, most=2)) == {"b": "2", "c": "3"}
