"""Rows of configurations: one for each plugin, set aside and brought back, removed with those set aside."""

from __future__ import annotations

import apsw
import pytest

from latticed.ledger import configs, migrations
from latticed.ledger.configs import ConfigRow


class Tx:
    """What `configs` uses of a Transaction."""

    def __init__(self, connection):
        self.execute = connection.execute
        self.changes = connection.changes


@pytest.fixture
def tx():
    connection = apsw.Connection(":memory:")
    migrations.migrate(connection)
    yield Tx(connection)
    connection.close()


def row(text):
    return ConfigRow(document=text.encode(), sha256="a" * 64, schema_sha256="b" * 64, updated_at=7)


def test_a_row_is_replaced(tx):
    """Also what it was checked against."""
    configs.put(tx, "acme.demo", row("{}"))
    configs.put(tx, "acme.demo", row('{"a":1}'))
    assert configs.get(tx, "acme.demo") == row('{"a":1}')
    configs.fits(tx, "acme.demo", "c" * 64)
    found = configs.get(tx, "acme.demo")
    assert (found.schema_sha256, found.document) == ("c" * 64, b'{"a":1}')
    configs.fits(tx, "acme.none", "c" * 64)
    assert configs.get(tx, "acme.none") is None


def test_rows_are_set_aside_and_brought_back(tx):
    """What is there under the other name is replaced."""
    configs.put(tx, "acme.demo", row("{}"))
    configs.put(tx, "acme.demo@acme", row('{"old":1}'))
    configs.rename_plugin(tx, "acme.demo", "acme.demo@acme")
    assert configs.get(tx, "acme.demo") is None
    configs.rename_plugin(tx, "acme.demo@acme", "acme.demo")
    assert configs.get(tx, "acme.demo") == row("{}")


def test_clearing_takes_an_id_and_its_earlier_publishers_alone(tx):
    """Not ids that begin alike."""
    kept = ["acme.demo2", "acme.demo.b", "acme.dem", "acme.demo-x"]
    for plugin_id in [*kept, "acme.demo", "acme.demo@acme", "acme.demo@zeta.z"]:
        configs.put(tx, plugin_id, row("{}"))
    configs.clear(tx, "acme.demo")
    assert {one for (one,) in tx.execute("SELECT plugin_id FROM configs")} == set(kept)
