"""What a restored state lacks on its machine, as sentences."""

from __future__ import annotations

import os

from latticed import settings
from latticed.bundle.read import ReadLimits
from latticed.lifecycle import restore_needs
from latticed.lifecycle.recovery import RecoveryPlace
from tests.house import bundles


def here(tmp_path, toml=""):
    """Settings and paths of a machine that has a policy and nothing else."""
    tmp_path.mkdir(exist_ok=True)
    config = tmp_path / "latticed.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nplugin_dir = "{tmp_path}/plugins"\n{toml}')
    found = settings.load(config, {}, os.geteuid())
    found.trust.write_bytes(bundles.policy_bytes())
    place = RecoveryPlace(
        state_dir=found.state_dir, plugin_dir=found.plugin_dir, trust=found.trust, limits=ReadLimits(), version="1.0.0"
    )
    return place, found


def test_restore_reports_settings_that_differ(tmp_path):
    """Equal settings and paths of the machine are not reported."""
    _, old = here(tmp_path / "old", '[audit]\nkeep_days = 7\n[http]\nhosts = ["a.example"]\n')
    were_set = restore_needs.chosen(old)
    assert were_set == (("http.hosts", '["a.example"]'), ("audit.keep_days", "7"))
    place, new = here(tmp_path / "new", "[audit]\nkeep_days = 7\n")
    said = list(restore_needs.missing(place, new, records=(), sealed={}, were_set=(*were_set, ("old.name", "1"))))
    assert said == [
        'the setting http.hosts was ["a.example"], here it is []',
        "the setting old.name was 1, here it is unknown",
    ]
    assert list(restore_needs.missing(place, old, records=(), sealed={}, were_set=were_set)) == []


def test_settings_that_are_tables_are_compared_too(tmp_path):
    source = '[market.sources.main]\nurl = "https://plugins.example.org/plugins.json"\n'
    _, old = here(tmp_path / "old", source)
    were_set = restore_needs.chosen(old)
    assert [key for key, _ in were_set] == ["market.sources"]
    place, new = here(tmp_path / "new")
    (said,) = restore_needs.missing(place, new, records=(), sealed={}, were_set=were_set)
    assert said.startswith("the setting market.sources was {")
    assert list(restore_needs.missing(place, old, records=(), sealed={}, were_set=were_set)) == []
