"""latticed.reload: what a poll notices of the settings file."""

from __future__ import annotations

from latticed.app import App
from tests.house import bundles, houses


async def test_settings_changed_while_the_daemon_opens_are_applied(tmp_path):
    """The file is read before the daemon opens its parts, which may take long: a change in between is not lost."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = houses.settings_in(tmp_path, '[log]\nlevel = "error"\n')
    _, changed = houses.settings_in(tmp_path, '[log]\nlevel = "info"\n')
    assert (settings.log.level, changed.log.level) == ("error", "info")
    async with App(config, settings, runners={}) as app:
        await app.reloader.looks[0].start()
        assert app.api.settings.log.level == "info"
        seen = app.api.settings
        await app.reloader.looks[0].start()
        assert app.api.settings is seen, "read again although nothing changed"
