"""What a controller makes of a database that an earlier one wrote."""

from __future__ import annotations

import contextlib
import sqlite3

from latticed.fleet.controller import database, store


async def test_generations_of_a_name_become_those_of_the_host_that_has_it(tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(state / database.FILE)) as before:
        before.executescript(database.MIGRATIONS[0])
        before.executescript(
            """
            PRAGMA user_version = 1;
            INSERT INTO nodes VALUES ('n1', 'one', '{}', 0, 5), ('n2', 'three', '{}', 0, 5);
            INSERT INTO floors VALUES ('n1', 2, 7), ('n2', 1, 9);
            INSERT INTO assignments VALUES
                ('n1', 2, 6, 'a', 'one', 'c', 1, 1, x''), ('n2', 1, 8, 'a', 'two', 'c', 1, 1, x'');
            """
        )
    async with database.opened(state) as kept:
        found = (await kept.read(store.load)).floors
    assert found == {("n1", "one"): (2, 7), ("n2", "three"): (1, 9), ("n2", "two"): (1, 8)}
