"""A used state directory, made once and copied for each test that damages it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from tests.house import bundles, daemons

CAPABILITIES = ["kv:read", "kv:write", "log:write", "network:plan"]
REVOKED = {"plugins": ["acme.bad@*"], "keys": [], "digests": []}


@contextlib.contextmanager
def used(acme: bundles.Author) -> Iterator[daemons.Place]:
    """The place of a daemon that has ended.

    acme.demo 1.2.0 is active, host risk granted and kv:write trimmed; acme.old was installed at 3.0.0 and forgotten;
    acme.bad is revoked; default/motd is hello; acme.demo has kept own=mine and has the secret TOKEN bound.
    """
    with daemons.placed() as place:
        place.trust_us(acme, revoked=REVOKED)
        place.drop("demo", author=acme, version="1.2.0", capabilities=CAPABILITIES)
        place.drop("old", author=acme, id="acme.old", version="3.0.0")
        with place.running() as daemon:
            daemon.activate("acme.demo", accept=["network:plan"])
            assert daemon.ask("PUT", "/api/plugins/by-id/acme.demo/grants", {"trim": ["kv:write"]}).status == 200
            assert daemon.ask("PUT", "/api/kv/default/motd", b"hello").status == 200
            assert daemon.ask("PUT", "/api/kv/plugin:acme.demo/own", b"mine").status == 200
            assert daemon.ask("PUT", "/api/secrets/TOKEN", b"correct horse battery").status == 200
            assert daemon.ask("PUT", "/api/secrets/TOKEN/plugins/acme.demo", {}).status == 200
            daemon.until(lambda: daemon.plugin("acme.old"), "acme.old")
            for status in ("installed", "disabled"):
                assert daemon.set_status(status, "acme.old").status == 200
            assert daemon.post("/api/plugins/by-id/acme.old/forget").status == 200
            assert daemon.stop() == 0
        yield place


def copy(past: daemons.Place, place: daemons.Place) -> daemons.Place:
    """Give `place` the state, bundles and policy of `past`."""
    for name in ("state", "plugins"):
        shutil.rmtree(place.home / name)
        shutil.copytree(past.home / name, place.home / name, symlinks=True)
        for path in (place.home / name, *(place.home / name).rglob("*")):
            place.own(path)
    place.write(place.trust, past.trust.read_bytes())
    return place
