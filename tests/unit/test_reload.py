"""latticed.reload: what a poll notices of the settings file."""

from __future__ import annotations

import pytest

from latticed.app import App
from latticed.kit import logs
from tests.house import bundles, in_process


@pytest.fixture(autouse=True)
def reset_logs():
    """A reload configures logging, which starts a thread."""
    yield
    logs.reset()


async def test_settings_changed_while_the_daemon_opens_are_applied(tmp_path):
    """The file is read before the daemon opens its parts, which may take long: a change in between is not lost."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = in_process.settings_in(tmp_path, '[log]\nlevel = "error"\n')
    _, changed = in_process.settings_in(tmp_path, '[log]\nlevel = "info"\n')
    assert (settings.log.level, changed.log.level) == ("error", "info")
    async with App(config, settings, runners={}) as app:
        await app.reloader.looks[0].start()
        assert app.api.settings.log.level == "info"
        seen = app.api.settings
        await app.reloader.looks[0].start()
        assert app.api.settings is seen, "read again although nothing changed"


async def test_switching_tasks_off_takes_effect_at_a_reload(tmp_path):
    """An operator's switch: `TaskKeeper` ends what runs at its next recheck."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = in_process.settings_in(tmp_path)
    async with App(config, settings, runners={}) as app:
        assert app.services.tasks.settings.enabled
        in_process.settings_in(tmp_path, "[task]\nenabled = false\n")
        await app.reloader.looks[0].start()
        assert not app.services.tasks.settings.enabled
