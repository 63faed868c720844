"""Settings: every key, its sources, and the errors."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st

from latticed import settings
from latticed.model.errors import Problem
from latticed.settings import Settings, shapes
from latticed.settings.renamed import RENAMED

PATHS = ("plugin_dir", "state_dir", "runtime_dir", "trust")
EUID = os.geteuid()


def _keys():
    """(dotted key, type, rules) of every key of every section, from the shapes themselves."""
    hints = get_type_hints(Settings, vars(shapes) | {"Path": os.PathLike})
    for section in fields(Settings):
        kind = hints[section.name]
        if is_dataclass(kind):
            yield from _of_section(section.name, kind)


def _of_section(name, kind):
    for key in fields(kind):
        found = get_type_hints(kind)[key.name]
        if is_dataclass(found):
            yield from _of_section(f"{name}.{key.name}", found)
        else:
            yield f"{name}.{key.name}", found, key.metadata


KEYS = list(_keys())
NUMBERS = [(key, kind, rules) for key, kind, rules in KEYS if kind in {int, float}]
WORDS = [(key, rules["one_of"]) for key, kind, rules in KEYS if kind is str and rules["one_of"]]


def load(tmp_path, toml="", *, environ=None, named=True, euid=EUID):
    file = tmp_path / "latticed.toml"
    file.write_bytes(toml.encode() if isinstance(toml, str) else toml)
    return settings.load(file if named else None, {"HOME": "/home/x", **(environ or {})}, euid)


def refused(tmp_path, toml, **options):
    with pytest.raises(Problem) as caught:
        load(tmp_path, toml, **options)
    assert caught.value.code == "settings_invalid"
    return caught.value


def line(key, value):
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {value}\n"


def get(found, dotted):
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


# Defaults and origins.


def test_every_setting_has_a_default(tmp_path):
    """Without a file and variables the origin of each value is `default`."""
    found = settings.load(None, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "none")}, 4_242)
    assert found.config_file is None
    assert {origin for _, _, origin in settings.describe(found)} == {"default"}
    assert found.state_dir == tmp_path / ".local/state/latticed"
    assert found.trust == tmp_path / "none/latticed/trust.json"
    assert found.control_socket == found.runtime_dir / "control.sock"


def test_default_directories_of_root_follow_fhs():
    found = settings.load(None, {}, 0) if not os.path.exists("/etc/latticed/latticed.toml") else None
    if found is None:
        pytest.skip("this machine has settings of its own in /etc/latticed")
    assert [str(getattr(found, name)) for name in PATHS] == [
        "/var/lib/latticed-plugins",
        "/var/lib/latticed",
        "/run/latticed",
        "/etc/latticed/trust.json",
    ]


@pytest.mark.parametrize(("key", "kind", "rules"), KEYS, ids=[key for key, *_ in KEYS])
def test_printed_default_settings_are_valid_as_a_file(tmp_path, key, kind, rules):
    """They are the output of --check-config, whose origin then is the file."""
    plain = {name: value for name, value, _ in settings.describe(load(tmp_path))}
    value = plain[key]
    text = "{}" if value == {} else json.dumps(value)
    found = load(tmp_path, line(key, text))
    assert get(found, key) == value
    if value != {}:
        assert {name: origin for name, _, origin in settings.describe(found)}[key] == str(tmp_path / "latticed.toml")


def test_trust_policy_defaults_to_directory_of_file(tmp_path):
    """The directory is that of the named settings file; the key `trust` overrides it."""
    assert load(tmp_path).trust == tmp_path / "trust.json"
    assert str(load(tmp_path, 'trust = "/srv/t.json"\n').trust) == "/srv/t.json"


# Errors in a file.


@pytest.mark.parametrize(
    ("toml", "key", "near"),
    [
        ("plugins_dir = '/x'", "plugins_dir", "plugin_dir"),
        ("[log]\nlevle = 'info'", "log.levle", "log.level"),
        ("[supervison]\nstart_deadline_s = 1", "supervison.start_deadline_s", "supervision.start_deadline_s"),
        ("[host_calls]\nper_seconds = 1", "host_calls.per_seconds", "host_calls.per_second"),
        ("[logs]\nlevel = 'info'", "logs.level", "log.level"),
        ("log = 'info'", "log", None),
        ("config_file = '/x'", "config_file", None),
        ("origins = {}", "origins", None),
        ("[zzz]\n", "zzz", None),
        ("[plugin_dir]\nx = 1", "plugin_dir.x", None),
    ],
)
def test_unknown_setting_is_refused_with_nearest_known_one(tmp_path, toml, key, near):
    """A typing error must not become a default silently."""
    problem = refused(tmp_path, toml)
    assert repr(key) in problem.reason
    assert str(tmp_path / "latticed.toml") in problem.reason
    if near:
        assert near in problem.hint


@pytest.mark.parametrize(("key", "kind", "rules"), KEYS, ids=[key for key, *_ in KEYS])
def test_setting_of_wrong_type_is_refused(tmp_path, key, kind, rules):
    """The problem has key, file, what was expected and found. A boolean is no number; an integer is a valid float."""
    wrong = {int: ["1.5", "true", "'1'", "[1]", "1979-05-27"], float: ["true", "'1'", "{a = 1}"]}
    wrong |= {bool: ["1", "'true'"], str: ["1", "true", "['info']"]}
    wrong |= {tuple[str, ...]: ["1", "'a'", "{a = 'read'}", "[1]", "[['a']]"]}
    for value in wrong.get(kind, ["1", "['a']", "{a = 'read'}", "{a = ['write']}", "{a = [1]}", "{a = [['read']]}"]):
        problem = refused(tmp_path, line(key, value))
        assert f"{key}" in problem.reason
        assert "expected" in problem.reason
        assert "found" in problem.reason
    if kind is float:
        assert get(load(tmp_path, line(key, "1")), key) == 1.0


@pytest.mark.parametrize(("key", "kind", "rules"), NUMBERS, ids=[key for key, *_ in NUMBERS])
def test_setting_out_of_bounds_is_refused(tmp_path, key, kind, rules):
    """The bounds themselves are valid; NaN and infinity are not."""
    low, high = rules["low"], rules["high"]
    assert get(load(tmp_path, line(key, kind(low))), key) == low
    assert get(load(tmp_path, line(key, kind(high))), key) == high
    beyond = [low - 1, high + 1, 10**30, -(10**30)]
    for value in [*beyond, *(["nan", "inf", "-inf", "1e400"] if kind is float else []), "1" + "0" * 400]:
        problem = refused(tmp_path, line(key, value))
        assert f"{low} to {high}" in problem.reason


@pytest.mark.parametrize(("key", "words"), WORDS, ids=[key for key, _ in WORDS])
def test_setting_with_invalid_choice_is_refused_with_the_list(tmp_path, key, words):
    """Each of the listed words is valid."""
    for word in words:
        assert get(load(tmp_path, line(key, json.dumps(word))), key) == word
    problem = refused(tmp_path, line(key, '"Info"'))
    assert all(word in problem.reason for word in words)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value", ["1", "true", "''", "'relative/path'", "'~/x'", "[]", "{}", '"/a\\u0000b"'])
def test_relative_path_in_settings_is_refused(tmp_path, name, value):
    """Nothing may depend on the daemon's working directory."""
    assert name in refused(tmp_path, f"{name} = {value}").reason


def test_unknown_scope_in_access_is_refused(tmp_path):
    """Users and groups are checked; the problem names which."""
    toml = "[access.users]\nalice = ['read', 'host']\n[access.groups]\nops = ['operate']\n"
    found = load(tmp_path, toml).access
    assert (found.users, found.groups) == ({"alice": ("read", "host")}, {"ops": ("operate",)})
    assert "access.users.alice" in refused(tmp_path, "[access.users]\nalice = ['admin']").reason
    assert "access.users.alice" in refused(tmp_path, "[access.users]\nalice = 'read'").reason


def test_named_settings_file_must_exist(tmp_path):
    """The default file need not."""
    with pytest.raises(Problem, match="no such file"):
        settings.load(tmp_path / "none.toml", {}, EUID)
    environ = {"CONFIGURATION_DIRECTORY": str(tmp_path), "HOME": "/"}
    assert settings.load(None, environ, EUID).config_file is None


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[log",
        b"a = ",
        b"a = 1\na = 2\n",
        b"x = " + b"9" * 5_000,
        b"x = " + b"[" * 50_000,
        b"# " + b"x" * (1 << 20),
        b"\x00",
        b"x = 1979-99-99",
    ],
    ids=["not utf-8", "open table", "no value", "twice", "long number", "deep", "too large", "nul", "no date"],
)
def test_settings_that_are_invalid_toml_are_an_error(tmp_path, content):
    """The parser may raise any exception."""
    assert str(tmp_path / "latticed.toml") in refused(tmp_path, content).reason


def test_settings_that_are_not_a_regular_file_do_not_block(tmp_path):
    """They are a FIFO or a directory."""
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(Problem, match="cannot read"):
            settings.load(tmp_path / name, {}, EUID)


@pytest.mark.parametrize("unsafe", ["file", "directory"])
def test_settings_file_writable_by_others_is_refused(tmp_path, unsafe):
    """It names the programs to run and who may use the control API."""
    home = tmp_path / "etc"
    home.mkdir()
    file = home / "latticed.toml"
    file.write_text("")
    (file if unsafe == "file" else home).chmod(0o777)
    with pytest.raises(Problem, match="cannot trust") as caught:
        settings.load(file, {}, EUID)
    assert "daemon's user" in caught.value.hint


@pytest.mark.root
@pytest.mark.skipif(EUID != 0, reason="needs uid 0 to give a file away")
def test_settings_file_of_another_user_is_refused(tmp_path):
    """Those of root and of the daemon's user are accepted."""
    file = tmp_path / "latticed.toml"
    file.write_text("")
    os.chown(file, 12_345, 12_345)
    with pytest.raises(Problem, match="belongs to uid 12345"):
        settings.load(file, {}, 0)


# The environment.


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("LATTICE_PLUGIN_DIR", "plugin_dir"),
        ("LATTICED_STATE_DIR", "state_dir"),
        ("LATTICED_RUNTIME_DIR", "runtime_dir"),
        ("LATTICED_TRUST", "trust"),
        ("LATTICED_LOG_LEVEL", "log.level"),
    ],
)
def test_environment_overrides_the_settings_file(tmp_path, variable, key):
    """So do the directories that systemd passes. An empty variable counts as absent; errors name the variable."""
    value, in_file = ("debug", "error") if key == "log.level" else ("/from/env", "/from/file")
    toml = line(key, json.dumps(in_file)) if "." in key else f'{key} = "{in_file}"'
    systemd = {"STATE_DIRECTORY": "/from/systemd", "RUNTIME_DIRECTORY": "/from/systemd"}
    found = load(tmp_path, toml, environ={variable: value, **systemd})
    assert str(get(found, key)) == value
    assert found.origins[key] == f"environment {variable}"
    assert str(get(load(tmp_path, toml, environ={variable: "", **systemd}), key)) == in_file
    problem = refused(tmp_path, toml, environ={variable: "nonsense"})
    assert f"environment {variable}" in problem.reason


@pytest.mark.parametrize(("variable", "key"), [("STATE_DIRECTORY", "state_dir"), ("RUNTIME_DIRECTORY", "runtime_dir")])
def test_systemd_directories_are_defaults_of_settings(tmp_path, variable, key):
    """The first of several is used; the file overrides them."""
    found = load(tmp_path, environ={variable: "/run/one:/run/two"})
    assert str(getattr(found, key)) == "/run/one"
    assert found.origins[key] == f"environment {variable}"
    found = load(tmp_path, f'{key} = "/mine"', environ={variable: "/run/one"})
    assert str(getattr(found, key)) == "/mine"


def test_systemd_variables_locate_the_settings_file(tmp_path):
    """CONFIGURATION_DIRECTORY holds latticed.toml and trust.json."""
    (tmp_path / "latticed.toml").write_text("[log]\nlevel = 'debug'\n")
    found = settings.load(None, {"CONFIGURATION_DIRECTORY": f"{tmp_path}:/other"}, EUID)
    assert (found.log.level, found.config_file) == ("debug", tmp_path / "latticed.toml")
    assert found.trust == tmp_path / "trust.json"


def test_relative_xdg_variables_are_ignored(tmp_path):
    """The base directory specification requires it."""
    environ = {"HOME": "/home/x", "XDG_STATE_HOME": "relative", "XDG_RUNTIME_DIR": "/run/user/7"}
    found = settings.load(None, {**environ, "XDG_CONFIG_HOME": str(tmp_path)}, 7)
    assert str(found.state_dir) == "/home/x/.local/state/latticed"
    assert str(found.runtime_dir) == "/run/user/7/latticed"


def test_xdg_directories_of_another_user_are_ignored(tmp_path):
    """HOME and XDG variables that `setpriv` or `su -m` keep: the user database is used instead."""
    other = next(one for one in pwd.getpwall() if one.pw_uid not in {0, tmp_path.stat().st_uid})
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    found = settings.load(None, environ, other.pw_uid)
    assert found.state_dir == Path(other.pw_dir, ".local/state/latticed")
    assert found.runtime_dir == Path(other.pw_dir, ".cache/latticed")
    nobody = max(one.pw_uid for one in pwd.getpwall()) + 1
    assert settings.load(None, {"HOME": str(tmp_path)}, nobody).state_dir == tmp_path / ".local/state/latticed"


# Arbitrary files.

values = st.recursive(
    st.one_of(
        st.integers(-(2**70), 2**70).map(str),
        st.floats().map(repr),
        st.booleans().map(lambda x: str(x).lower()),
        st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=True).replace("\\u007f", " ")),
        st.sampled_from(["1979-05-27", "07:32:00", "inf", "0xff", "''"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"{key} = {value}" for key, value in items.items()) + "}"
        ),
    ),
    max_leaves=4,
)
names = st.sampled_from([*PATHS, *(key for key, *_ in KEYS), "nonsense", "log", "access", "log.level.deep", "a.b.c"])


@tuned(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.dictionaries(names, values, max_size=4), junk=st.binary(max_size=20))
def test_any_settings_file_gives_settings_or_a_problem(tmp_path, lines, junk):
    """No other exception is raised; and what loads is within its bounds."""
    toml = "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()
    for content in (toml, toml + junk):
        try:
            found = load(tmp_path, content)
        except Problem:
            continue
        for key, kind, rules in KEYS:
            if rules["low"] is not None:
                assert type(get(found, key)) is kind
                assert rules["low"] <= get(found, key) <= rules["high"]


# Renamed keys.


def test_deprecated_key_sets_its_replacement(tmp_path):
    """The advice says which line to change."""
    found = load(tmp_path, "[tunnel]\ntunnels = 3\n[task]\nexpire_h = 2\noutput_kib = 8\n")
    assert (found.tunnel.total_tunnels, found.task.expire_s, found.task.output_bytes) == (3, 7_200, 8_192)
    assert set(found.renamed) == {"tunnel.tunnels", "task.expire_h", "task.output_kib"}
    assert found.origins["tunnel.total_tunnels"].endswith("latticed.toml as tunnel.tunnels")
    told = settings.advice(found.renamed)
    assert "tunnel.tunnels is called tunnel.total_tunnels now; the old name is taken for this version only" in told
    assert any("task.expire_s (3600 times the value)" in one for one in told)


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_deprecated_key_sets_the_same_value_in_its_old_unit(tmp_path, old):
    """It is no setting itself any more; its replacement is."""
    new, factor = RENAMED[old]
    plain = load(tmp_path)
    assert old not in {key for key, *_ in KEYS}
    default = get(plain, new)
    value = default // factor
    found = load(tmp_path, line(old, int(value) if factor > 1 else default))
    assert get(found, new) == default
    assert found.renamed == (old,)
    assert load(tmp_path, line(new, default)).renamed == ()


def test_invalid_value_of_deprecated_key_names_both_keys(tmp_path):
    problem = refused(tmp_path, "[tunnel]\ntunnels = 'many'\n")
    assert "tunnel.total_tunnels" in problem.reason
    assert "as tunnel.tunnels" in problem.reason


def test_deprecated_key_beside_its_replacement_is_refused(tmp_path):
    problem = refused(tmp_path, "[tunnel]\ntunnels = 3\ntotal_tunnels = 4\n")
    assert "tunnel.tunnels is called tunnel.total_tunnels now, and both are set" in problem.reason
    assert problem.hint == "remove tunnel.tunnels"
