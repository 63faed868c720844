"""`latticectl config` against a running daemon: TOML and JSON, all faults, what is refused before it is sent."""

from __future__ import annotations

import json

import pytest

from tests.daemon.test_config import ECHO, ID, SCHEMA, SPEAKING, gone
from tests.house import hosting, programs

pytestmark = pytest.mark.daemon

TOML = """
city = "Bern"  # capital
[[rules]]
port = 22
proto = "tcp"
"""
WANTED = {"city": "Bern", "rules": [{"port": 22, "proto": "tcp"}]}


@pytest.fixture(scope="module")
def host():
    with hosting.hosting() as host:
        host.up(ID, ECHO, runtime=SPEAKING, config=SCHEMA)
        yield host


@pytest.fixture
def config(host):
    """Runs `latticectl config`; the configuration is emptied after the test."""
    yield lambda *words, stdin="": host.daemon.ctl("config", *words, stdin=stdin)
    assert host.daemon.ctl("config", "set", ID, "-f", "-", stdin="{}").returncode == 0


def test_config_set_of_a_toml_file_is_printed_as_json_by_get(host, config):
    """The plugin has it; what `get` prints can be set again, which changes nothing."""
    file = host.daemon.place.home / "settings.toml"
    host.daemon.place.write(file, TOML.encode())
    done = config("set", ID, "-f", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ID} configured and restarted, armed\n", "")
    assert host.result(ID, "config")["config"] == WANTED
    shown = config("get", ID)
    assert (shown.returncode, json.loads(shown.stdout), shown.stderr) == (0, WANTED, "")
    again = config("set", ID, "-f", "-", stdin=shown.stdout)
    assert (again.returncode, again.stdout) == (0, f"{ID} is configured so already\n")


def test_config_check_says_that_the_file_fits_and_sets_nothing(host, config):
    done = config("check", ID, "-f", "-", stdin=TOML)
    assert (done.returncode, done.stdout) == (0, f"{ID} fits: 51 bytes, nothing was changed\n")
    whole = json.loads(config("check", ID, "-f", "-", "--format", "json", stdin=TOML).stdout)
    assert (whole["ok"], whole["dry_run"], whole["bytes"]) == (True, True, 51)
    assert json.loads(config("get", ID).stdout) == {}


@pytest.mark.parametrize("verb", ["check", "set"])
def test_config_faults_are_printed_one_per_line(host, config, verb):
    """They go to stderr, before the error and a hint, and are data with --format json. Exit status 1."""
    stdin = '{"citty": 1, "rules": [{"port": 0}, {}]}'
    done = config(verb, ID, "-f", "-", stdin=stdin)
    *faults, error, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert set(faults) == {
        "rules[0].port: expected a number of at least 1, found 0",
        'rules[1]: expected the key "port", found none',
        'the document: expected only known keys, found "citty"',
    }
    assert error == f"error: standard input does not fit the schema of {ID}"
    assert hint == f"hint: latticectl config get {ID} --schema shows what it may hold"
    data = config(verb, ID, "-f", "-", "--format", "json", stdin=stdin)
    whole = json.loads(data.stdout)
    assert (data.returncode, whole["ok"], whole["code"], len(whole["errors"])) == (1, False, "config_invalid", 3)


def test_config_get_prints_the_schema(config):
    done = config("get", ID, "--schema")
    assert (done.returncode, json.loads(done.stdout)) == (0, SCHEMA)


def test_config_set_hints_at_binding_an_unbound_secret(host, config):
    """Once it is bound, there is no hint."""
    done = config("set", ID, "-f", "-", stdin='{"token": "${secret:UNBOUND}"}')
    assert done.returncode == 0
    assert done.stderr.endswith(f"hint: latticectl secret bind UNBOUND {ID}\n")
    assert host.daemon.ctl("secret", "set", "UNBOUND", stdin="six letters").returncode == 0
    assert host.daemon.ctl("secret", "bind", "UNBOUND", ID).returncode == 0
    assert config("get", ID).stderr == ""
    assert host.daemon.ctl("secret", "delete", "--unbind", "UNBOUND").returncode == 0


@pytest.mark.parametrize(
    ("stdin", "word"),
    [
        ("since = 2026-01-31", "since: expected a value that JSON has, found a date or time"),
        ("a.b = [{c = 07:30:00}]", "a.b[0].c: expected a value that JSON has"),
        ("a = inf", "a: expected a finite number, found inf"),
        ("a = [nan]", "a[0]: expected a finite number, found nan"),
        ("a = [9007199254740992]", "a[0]: expected an integer within"),
        ("a = 0x" + "f" * 9000, "a: expected an integer within"),
        ("a = " + "9" * 9000, "expected TOML or a JSON object"),
        ("city =", "expected TOML or a JSON object"),
        ("a = 1\na = 2", "expected TOML or a JSON object"),
        ("", None),
        ('{"a": 1, "a": 2}', "expected each key once"),
        ('{"a": NaN}', "found NaN"),
        ('{"a": 1e400}', "double"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "32 levels"),
        ("a = " + "[" * 40 + "]" * 40, "32 levels"),
        ("a = " + "[" * 3000 + "]" * 3000, "32 levels"),
        ("[1, 2]", "expected TOML or a JSON object"),
        ("{", "line 1"),
    ],
)
def test_config_value_that_json_cannot_represent_is_refused_with_its_place(config, stdin, word):
    """It is refused before a request is sent, with exit status 2. An empty file is an empty TOML document."""
    done = config("check", ID, "-f", "-", stdin=stdin)
    if word is None:
        assert done.returncode == 0
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: standard input: ")
    assert word in done.stderr


def test_unreadable_config_file_is_reported(host, config):
    """It is missing, a directory, too large, or not UTF-8."""
    home = host.daemon.place.home
    large, latin = home / "large.json", home / "latin.toml"
    host.daemon.place.write(large, b" " * (2 << 20))
    host.daemon.place.write(latin, 'city = "Zürich"'.encode("latin-1"))
    for path, status, word in (
        (home / "none.toml", 2, "No such file"),
        (home, 2, "directory"),
        (large, 1, "1048576"),
        (latin, 2, "byte 0xfc"),
    ):
        done = config("check", ID, "-f", str(path))
        assert (done.returncode, done.stdout) == (status, ""), path
        assert word in done.stderr


def test_config_of_an_unknown_plugin_is_not_found(config):
    for verb in (("get", "acme.nobody"), ("set", "acme.nobody", "-f", "-"), ("check", "acme.nobody", "-f", "-")):
        assert config(*verb, stdin="{}").returncode == 4
    assert config("get", "no/id").returncode == 4


FRAIL = (
    programs.SDK
    + b"""
    def started(self):
        if self.config.get("city") == "Atlantis":
            raise ValueError("no such city")

Test().run()
"""
)


def test_set_fails_when_the_plugin_does_not_run_with_it(host):
    """The configuration is kept; exit status 1, why, and the command that explains it. Another one mends it."""
    plugin_id = host.up("acme.frail", FRAIL, runtime=SPEAKING, config=SCHEMA)
    done = host.daemon.ctl("config", "set", plugin_id, "-f", "-", stdin='city = "Atlantis"')
    assert (done.returncode, done.stdout) == (1, f"{plugin_id} configured and restarted, failed\n")
    assert "no such city" in done.stderr
    assert done.stderr.endswith(f"hint: latticectl explain {plugin_id}\n")
    assert json.loads(host.daemon.ctl("config", "get", plugin_id).stdout) == {"city": "Atlantis"}
    done = host.daemon.ctl("config", "set", plugin_id, "-f", "-", stdin='city = "Bern"')
    assert (done.returncode, done.stdout) == (0, f"{plugin_id} configured and restarted, armed\n")
    gone(host, plugin_id)


def test_explain_names_the_command_that_configures_a_plugin(host):
    """The plugin cannot start without a configuration."""
    plugin_id = "acme.needy"
    answer = host.activated(plugin_id, ECHO, runtime=SPEAKING, config={**SCHEMA, "required": ["city"]})
    assert answer.code == "needs_config"
    done = host.daemon.ctl("activate", plugin_id)
    assert done.returncode == 1
    assert f"hint: latticectl config set {plugin_id} -f FILE" in done.stderr
    assert 'expected the key "city", found none' in done.stderr
    explained = host.daemon.ctl("explain", plugin_id)
    assert f"latticectl config set {plugin_id} -f FILE" in explained.stdout
    gone(host, plugin_id)
