"""latticed.reload: what a poll notices of the settings file."""

from __future__ import annotations

import io
import json
import tarfile

import aiohttp
import msgspec
import pytest

from latticed import reload
from latticed.app import App
from latticed.kit import logs
from latticed.model.manifest import Manifest, ManifestLimits, RuntimeSpec
from tests.house import bundles, edges, hostcalls, in_process, targets

LOWER = """
[plugin_limits]
memory_mib = 64
max_memory_mib = 512
scratch_mib = 3
invocations = 2
max_invoke_timeout_s = 5

[sandbox.interpreters]
sh = "/bin/sh"
"""
ASKED = ManifestLimits(memory_mib=1_000, invoke_timeout_s=20)


@pytest.fixture(autouse=True)
def reset_logs():
    """A reload configures logging, which starts a thread."""
    yield
    logs.reset()


async def polled(app, times=2):
    """Polls of the settings file, as the daemon makes one every second: what is the same at two of them counts."""
    for _ in range(times):
        await app.reloader.looks[0].start()


async def test_half_written_settings_never_take_effect(tmp_path):
    """Each is a sound file of its own: what counts was the same at two polls in a row. SIGHUP does not wait."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    whole = "[access]\nown_user = false\n[audit]\nkeep_days = 30\n"
    config, settings = in_process.settings_in(tmp_path, whole)
    async with App(config, settings, runners={}) as app:
        before = app.api.settings
        for text in ("", "[access]\n", whole.replace("30", "3")):
            config.write_text("")
            await polled(app, 1)
            in_process.settings_in(tmp_path, text)
            await polled(app, 1)
            assert (app.api.settings, app.api.trouble) == (before, [])
        in_process.settings_in(tmp_path, whole.replace("30", "31"))
        await polled(app)
        assert (app.api.settings.access.own_user, app.api.settings.audit.keep_days) == (False, 31)
        in_process.settings_in(tmp_path, whole.replace("30", "32"))
        await app.reloader.reload()
        assert app.api.settings.audit.keep_days == 32


async def test_settings_that_are_changed_while_they_are_read_wait_for_the_next_polls(tmp_path, monkeypatch):
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = in_process.settings_in(tmp_path)
    load, text = reload.settings_room.load, config.read_text()

    def load_as_an_editor_saves(*given, **more):
        found = load(*given, **more)
        if found.audit.keep_days == 3:
            config.write_text(f"{text}[audit]\nkeep_days = 31\n")
        return found

    async with App(config, settings, runners={}) as app:
        config.write_text(f"{text}[audit]\nkeep_days = 3\n")
        monkeypatch.setattr(reload.settings_room, "load", load_as_an_editor_saves)
        await polled(app)
        assert (app.api.settings.audit.keep_days, "31" in config.read_text()) == (0, True)
        await polled(app)
        assert app.api.settings.audit.keep_days == 31


async def test_settings_changed_while_the_daemon_opens_are_applied(tmp_path):
    """The file is read before the daemon opens its parts, which may take long: a change in between is not lost."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = in_process.settings_in(tmp_path, '[log]\nlevel = "error"\n')
    _, changed = in_process.settings_in(tmp_path, '[log]\nlevel = "info"\n')
    assert (settings.log.level, changed.log.level) == ("error", "info")
    async with App(config, settings, runners={}) as app:
        await polled(app)
        assert app.api.settings.log.level == "info"
        seen = app.api.settings
        await polled(app)
        assert app.api.settings is seen, "read again although nothing changed"


async def test_backup_names_the_settings_that_a_reload_set():
    """Those alone that are in force: not what waits for a restart, nor what was taken out again."""
    async with in_process.opened(toml="[audit]\nmax_bytes = 1000000000\n") as home:
        in_process.settings_in(home.root, "[audit]\nkeep_days = 30\n[limits]\nbundles = 9\n")
        await home.look()
        saved = await home.ask("GET", "/api/backup")
        with tarfile.open(fileobj=io.BytesIO(saved["raw"])) as tar:
            named = dict(json.load(tar.extractfile("manifest.json"))["settings"])
        assert named == {"watch.quiet_s": "0.02", "watch.max_wait_s": "0.5", "audit.keep_days": "30"}


async def test_switching_tasks_off_takes_effect_at_a_reload(tmp_path):
    """An operator's switch: `TaskKeeper` ends what runs at its next recheck."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = in_process.settings_in(tmp_path)
    async with App(config, settings, runners={}) as app:
        assert app.services.tasks.settings.enabled
        in_process.settings_in(tmp_path, "[task]\nenabled = false\n")
        await polled(app)
        assert not app.services.tasks.settings.enabled


async def test_hosts_of_both_listeners_take_effect_at_a_reload():
    """Routes stay bound where they are; a name that is no longer listed is refused at once."""
    toml = '[http]\nlisten = "127.0.0.1:0"\nservice_listen = "127.0.0.1:0"\n'
    async with in_process.opened(toml=toml) as home, targets.site() as site, aiohttp.ClientSession() as client:
        home.drop("demo", id="acme.demo", capabilities=hostcalls.EVERYTHING)
        instance = await home.armed("acme.demo", accept=hostcalls.HOST_RISK)
        origin = site.url().rstrip("/")
        await home.ask("PUT", "/api/plugins/by-id/acme.demo/grants", {"permits": [f"publish={origin}"]})
        await instance.call("route.put", path="/acme.demo/page/", target="template", template="hello")
        await instance.call("route.put", path="/acme.demo/app/", target="service", origin=origin, public=["/**"])
        services = home.app.services
        urls = (f"{services.pages.listener.url}/acme.demo/page/", f"{services.upstreams.listener.url}/acme.demo/app/x")

        async def statuses(host):
            found = []
            for url in urls:
                async with client.get(url, headers={"Host": host}) as answer:
                    found.append(answer.status)
            return found

        assert (await statuses("app.example.org"), await statuses("localhost")) == ([421, 421], [200, 200])
        in_process.settings_in(home.root, toml + 'hosts = ["app.example.org"]\n')
        await home.look()
        assert (await statuses("app.example.org"), await statuses("localhost")) == ([200, 200], [421, 421])


async def test_limits_of_children_and_the_watch_take_effect_at_a_reload(tmp_path):
    """For what is started from then on; the defaults for manifests that say nothing stay those of the start."""
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(bundles.author()))
    config, settings = in_process.settings_in(tmp_path)
    asking = Manifest(
        id="acme.demo", name="Demo", type="system", capabilities=("kv:read",), runtime=RuntimeSpec(limits=ASKED)
    )
    silent = msgspec.structs.replace(asking, runtime=RuntimeSpec())
    async with App(config, settings, runners={}) as app:
        spawner, before = app.api.spawner, app.api.spawner.limits(silent)
        assert spawner.limits(asking).memory_bytes == 1_000 << 20
        in_process.settings_in(tmp_path, LOWER)
        await polled(app)
        assert spawner.limits(asking).memory_bytes == 512 << 20
        assert (spawner.invoking(asking).timeout_s, spawner.invoking(asking).at_once) == (5, 2)
        after = spawner.limits(silent)
        assert (after.memory_bytes, after.scratch_bytes) == (before.memory_bytes, 3 << 20)
        assert spawner.interpreters == {"sh": "/bin/sh"}


async def test_quiet_time_takes_effect_at_a_reload(monkeypatch):
    """Also for a bundle that waits already."""
    swift = in_process.SWIFT
    monkeypatch.setattr(in_process, "SWIFT", "[watch]\nquiet_s = 60\nmax_wait_s = 600\nrescan_s = 86400\n")
    async with in_process.opened() as home:
        home.drop("demo", id="acme.demo")
        monkeypatch.setattr(in_process, "SWIFT", swift)
        in_process.settings_in(home.root)
        await home.look()
        await home.seen("acme.demo")


async def test_tunnel_settings_take_effect_at_a_reload(tmp_path):
    """An operator installs another cloudflared beside the first and names it; then none."""
    program, newer = edges.install(tmp_path), edges.install(tmp_path, version="2026.5.0", name="newer")
    keys = edges.write_keys(tmp_path / "keys")

    def toml(path):
        return f'[tunnel]\nprogram = "{path}"\ncredentials_dir = "{keys}"\ncheck_s = 0.1\n'

    async with in_process.opened(toml=toml(program)) as home:
        home.drop("demo", id="acme.demo", capabilities=hostcalls.EVERYTHING)
        instance = await home.armed("acme.demo", accept=hostcalls.HOST_RISK)
        wanted = {"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json"}
        await instance.call("tunnel.put", **wanted, ingress=[{"service": "http_status:404"}])
        (tunnel,) = home.app.services.tunnels.of("acme.demo")

        def shown():
            found = tunnel.view()
            return found["state"], found["version"], found["trying"]

        await in_process.until(lambda: shown() == ("connected", "2025.11.1", False), "the tunnel")
        in_process.settings_in(home.root, toml(newer))
        await home.look()
        await in_process.until(lambda: shown() == ("connected", "2026.5.0", False), "the newer cloudflared")
        in_process.settings_in(home.root, toml(""))
        await home.look()
        await in_process.until(lambda: shown()[0] == "stopped", "the tunnel to end")
