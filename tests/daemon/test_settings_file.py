"""What a daemon makes of a settings file that is gone, empty, or appears while it runs."""

from __future__ import annotations

import signal

import pytest

pytestmark = pytest.mark.daemon

NO_OWN_USER = """[access]
own_user = false
[access.users]
root = ["read"]
"""


def by_default(place):
    """The daemon looks for its file where it is expected: no --config. It may have none."""
    place.arguments = lambda *more: list(more)
    place.env |= {
        "CONFIGURATION_DIRECTORY": str(place.home),
        "LATTICE_PLUGIN_DIR": str(place.plugins),
        "LATTICED_STATE_DIR": str(place.state),
        "LATTICED_RUNTIME_DIR": str(place.run),
    }


@pytest.mark.parametrize(
    ("named", "hup", "word"),
    [
        (True, False, "no such file"),
        (False, False, "an empty file"),
        (False, True, "no such file"),
        (True, True, "an empty file"),
    ],
)
def test_settings_stay_in_force_when_their_file_is_gone_or_empty(place, named, hup, word):
    """Health says so until it is back; the daemon's own user gets no access by it. A restart goes on without."""
    if not named:
        by_default(place)
    place.set(NO_OWN_USER)
    text = place.config.read_bytes()
    with place.running() as daemon:
        if word == "no such file":
            place.config.unlink()
        else:
            place.write(place.config, b"")
        if hup:
            daemon.signal(signal.SIGHUP)
        daemon.until(lambda: daemon.get("/api/health").status == 503, "health to say so")
        problem = daemon.get("/api/health").json()["problems"][0]
        assert problem == {"code": "settings_invalid", "detail": f"expected settings in {place.config}, found {word}"}
        assert "restart" in daemon.logged("settings_refused")[0]["hint"]
        if place.user is not None:
            assert daemon.get("/api/plugins", user=place.user).status == 403
        place.write(place.config, text)
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the file to be read again")
        assert len(daemon.logged("settings_refused")) == 1
        if place.user is not None:
            assert daemon.get("/api/plugins", user=place.user).status == 403


def test_removed_settings_take_effect_at_a_restart(place):
    by_default(place)
    place.set('[log]\nlevel = "debug"')
    with place.running() as daemon:
        place.config.unlink()
        daemon.until(lambda: daemon.get("/api/health").status == 503, "health to say so")
        assert daemon.stop() == 0
    with place.running() as daemon:
        assert daemon.get("/api/health").status == 200


def test_settings_that_are_made_while_the_daemon_runs_without_are_read(place):
    """Without a word, as a changed file is; from then on they are in force, and stay so without their file."""
    by_default(place)
    place.config.unlink()
    with place.running() as daemon:
        place.set("[audit]\nkeep_days = 30")
        daemon.until(lambda: daemon.logged("settings_loaded"), "the settings")
        place.config.unlink()
        daemon.until(lambda: daemon.get("/api/health").status == 503, "health to say so")


def test_empty_settings_may_stay_empty(place):
    """They were so at the start: a reload takes nothing away."""
    by_default(place)
    place.write(place.config, b"")
    with place.running() as daemon:
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: daemon.logged("settings_loaded"), "the reload")
        assert daemon.get("/api/health").status == 200
