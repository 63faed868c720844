from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.ctl import completion, main
from tests.house import api_server, terminals

NO_TEXT = "acme.\udcff"
COMMAND = (sys.executable, "-m", "latticed.ctl.main")


def environ(api: api_server.Api | None = None, **more: str) -> dict[str, str]:
    """The environment of a real latticectl process."""
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error", **more}
    return plain if api is None else {**plain, "LATTICED_SOCKET": str(api.socket)}


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_overview_lists_every_verb_by_group(ctl, words):
    """`latticectl` and `latticectl --help` print all verbs, grouped, and succeed."""
    ran = ctl(*words)
    assert ran.code == 0
    assert all(f"\n  {verb} " in ran.out for verb in main.VERBS)
    assert "Make bundles (offline):" in ran.out


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_help_with_examples(ctl, verb):
    """`latticectl VERB --help` prints usage, purpose and examples."""
    ran = ctl(verb, "--help")
    assert ran.code == 0
    assert f"usage: latticectl {verb}" in ran.out
    assert f"examples:\n  latticectl {verb}" in ran.out or f"latticectl {verb}" in ran.out.split("examples:")[1]
    assert "--format {text,json}" in ran.out


def _places(parser, words):
    """The arguments of every verb and action, with invalid UTF-8 in one place after the other."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _places(inner, (*words, name))
            return
    positional = [action for action in parser._actions if not action.option_strings]
    plain = [next(iter(action.choices)) if action.choices else "acme.demo" for action in positional]
    for place in range(len(plain)):
        yield (*words, *plain[:place], NO_TEXT, *plain[place + 1 :])
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and action.dest not in {"socket", "config", "format"}:
            yield (*words, *plain, action.option_strings[-1], NO_TEXT)


def test_arguments_that_are_not_utf_8_are_errors(ctl, api, tmp_path, monkeypatch):
    """They are accepted in paths only; no argument reaches the daemon altered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    tried = 0
    for words in _places(completion.whole_parser(), ()):
        api.asked.clear()
        ran = ctl(*words, LATTICED_TRUST=str(tmp_path / "trust.json"))
        tried += 1
        assert ran.code in (0, 1, 2, 4, 7), words
        if ran.code == 2:
            assert ran.err.startswith("error: "), words
            assert api.asked == [], words
    assert tried > 80
    assert (ctl(NO_TEXT).code, ctl("list", "--socket", NO_TEXT).code, ctl("list", "--format", NO_TEXT).code) == (
        2,
        7,
        2,
    )
    assert "expected UTF-8, found b'acme.\\xff'" in ctl("info", NO_TEXT).err


@pytest.mark.parametrize(
    ("words", "detail", "hint"),
    [
        (("lst",), "unknown verb 'lst'", "did you mean list?"),
        (("enable", "acme.demo"), "unknown verb 'enable'", "did you mean latticectl activate?"),
        (("start", "acme.demo"), "unknown verb 'start'", "did you mean latticectl activate?"),
        (("stop", "acme.demo"), "unknown verb 'stop'", "did you mean latticectl disable?"),
        (("rm", "acme.demo"), "unknown verb 'rm'", "did you mean latticectl forget?"),
        (("uninstall", "acme.demo"), "unknown verb 'uninstall'", "did you mean latticectl forget?"),
        (("remove", "acme.demo"), "unknown verb 'remove'", "did you mean latticectl forget?"),
        (("delete", "acme.demo"), "unknown verb 'delete'", "did you mean latticectl forget?"),
        (("ps",), "unknown verb 'ps'", "did you mean latticectl top?"),
        (("ls",), "unknown verb 'ls'", "did you mean latticectl list?"),
        (("show", "acme.demo"), "unknown verb 'show'", "did you mean latticectl info?"),
        (("grant", "acme.demo"), "unknown verb 'grant'", "did you mean latticectl caps grant?"),
        (("help",), "unknown verb 'help'", "did you mean latticectl --help?"),
        (("fleet",), "the following arguments are required: ACTION", "latticectl fleet --help"),
        (("frobnicate",), "unknown verb 'frobnicate'", "latticectl --help"),
        (("fleet", "x"), "argument ACTION: invalid choice: 'x'", "latticectl fleet --help"),
        (("list", "--bogus"), "unrecognized arguments: --bogus", "latticectl list --help shows how"),
        (("info",), "the following arguments are required: ID", "latticectl info --help"),
        (("kv", "get", "b"), "the following arguments are required: KEY", "latticectl kv get --help"),
        (("kv",), "the following arguments are required: ACTION", "latticectl kv --help"),
        (("--format", "xml", "list"), "argument --format: invalid choice: 'xml'", "latticectl --help"),
        (("list", "--form", "json"), "unrecognized arguments: --form json", "latticectl list --help"),
        (("li\x1bst",), "unknown verb 'li\\x1bst'", ""),
        *(
            (
                ("audit", "query", "--limit", given),
                f"--limit: expected a whole number of 1 to 1000, found '{given}'",
                "",
            )
            for given in ("x", "0", "1001")
        ),
        (("audit", "query", "--since", "yesterday"), "--since: expected 10m, 2h, 3d or a time", ""),
    ],
)
def test_wrong_use_of_latticectl_exits_2_with_an_error_and_a_hint(ctl, words, detail, hint):
    """`error:` and `hint:` on stderr, nothing on stdout."""
    ran = ctl(*words)
    assert (ran.code, ran.data) == (2, b"")
    assert ran.err.startswith("error: ")
    assert detail in ran.err
    assert hint in ran.err
    assert "\x1b" not in ran.err


def test_unknown_format_in_environment_is_a_usage_error(ctl, api):
    ran = ctl("list", LATTICECTL_FORMAT="yaml")
    assert ran.code == 2
    assert "LATTICECTL_FORMAT: expected text or json, found 'yaml'" in ran.err


def test_format_option_overrides_environment(ctl, api):
    """--format before or after the verb, else LATTICECTL_FORMAT, else text."""
    assert ctl("list", LATTICECTL_FORMAT="json").json == []
    assert ctl("--format", "json", "list").json == []
    assert ctl("list", "--format=json").json == []
    assert ctl("list", "--format", "text", LATTICECTL_FORMAT="json").data == b""
    assert ctl("kv", "list", "b", "--format", "json").json == {"bucket": "b", "keys": []}


def test_socket_option_overrides_environment(ctl, api, tmp_path):
    assert ctl("--socket", str(api.socket), "list", LATTICED_SOCKET=str(tmp_path / "none")).code == 0
    assert ctl("list", "--socket", str(tmp_path / "none")).code == 7


def test_socket_path_defaults_to_the_settings(ctl, api, monkeypatch):
    """LATTICED_RUNTIME_DIR is the daemon's own variable; the socket in it is called control.sock."""
    monkeypatch.delenv("LATTICED_SOCKET")
    with api_server.serving(api.socket.with_name("control.sock")):
        assert ctl("list", LATTICED_RUNTIME_DIR=str(api.socket.parent)).code == 0


def test_daemon_is_found_by_settings_that_it_would_refuse_now(ctl, api, monkeypatch, tmp_path):
    """A daemon goes on with the settings it has, and answers; of the file only `runtime_dir` is needed to find it."""
    monkeypatch.delenv("LATTICED_SOCKET")
    config = tmp_path / "latticed.toml"
    config.write_text(f"runtime_dir = '{api.socket.parent}'\nplugindir = '/x'\n")
    with api_server.serving(api.socket.with_name("control.sock")):
        assert ctl("list", "--config", str(config)).code == 0


def test_unknown_setting_exits_with_2_and_names_the_key(ctl, tmp_path):
    """The error also suggests the key that was probably meant."""
    config = tmp_path / "latticed.toml"
    config.write_text("plugindir = '/x'\n")
    ran = ctl("list", "--config", str(config))
    assert ran.code == 2
    assert "unknown key 'plugindir'" in ran.err
    assert "did you mean 'plugin_dir'?" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        *(("status",), ("list",), ("info", "acme.demo"), ("activate", "acme.demo"), ("health",)),
        *(("explain", "acme.demo"), ("events",), ("top",), ("fleet", "--help")),
    ],
)
def test_online_verbs_import_none_of_the_daemons_packages(api, words):
    """They import no large library either, so that they start fast."""
    api.add(status="installed")
    code = (
        "import sys\nfrom latticed.ctl import main\n"
        f"code = main.main({list(words)!r})\n"
        "heavy = 'msgspec cryptography rich aiohttp asyncio structlog rfc8785 semver shtab watchdog apsw ssl'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
        "packages = {name.split('.')[1] for name in sys.modules if name.startswith('latticed.')}\n"
        "print(sorted(packages), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ(api), capture_output=True, text=True, check=True)
    heavy, packages = done.stderr.splitlines()[-2:]
    assert heavy == "[]"
    assert set(eval(packages)) <= {"client", "ctl", "wire", "model", "kit", "settings"}  # noqa: S307 - our own repr


def test_closed_pipe_ends_without_an_error_message(api):
    """`latticectl list | head -1` closes it."""
    for number in range(3000):
        api.add(f"acme.demo{number}")
    read, write = os.pipe()
    try:
        child = subprocess.Popen([*COMMAND, "list"], stdout=write, stderr=subprocess.PIPE, env=environ(api))
        os.close(write)
        os.read(read, 10)
    finally:
        os.close(read)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (141, b"")


def test_output_to_a_full_disk_exits_with_an_error(api):
    api.add()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, env=environ(api), check=False)
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write the output: No space left on device\n"


def test_error_of_a_file_names_the_file_and_not_the_output(ctl, tmp_path):
    """Here of one that no verb expects: a name that is too long for the system."""
    assert ctl("key", "generate", str(tmp_path / "index.key")).code == 0
    long = "x" * 300
    ran = ctl("index", "sign", "--key", str(tmp_path / "index.key"), f"{long}/plugins.json")
    assert (ran.code, ran.err) == (1, f"error: {long}: File name too long\n")


def test_interrupt_exits_130_without_traceback(api):
    api.add()
    quiet = environ(api, PYTHONWARNINGS="")  # no warnings: the signal may come between a socket and its name
    child = subprocess.Popen([*COMMAND, "wait", "acme.demo", "--for", "healthy"], stderr=subprocess.PIPE, env=quiet)
    api.until_asked(1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, b"")


def test_characters_outside_the_locale_are_escaped(api):
    api.add(version="1.0-ü")
    done = subprocess.run(
        [*COMMAND, "list"], env=environ(api, PYTHONIOENCODING="ascii"), capture_output=True, text=True, check=True
    )
    assert "1.0-\\xfc" in done.stdout


def test_output_is_coloured_and_cut_on_terminals_only(api):
    """A terminal gets colour unless NO_COLOR is set, and rows cut to its width; a pipe gets neither."""
    api.rejected = [{"name": "x" * 200, "code": "manifest_invalid", "reason": "r" * 200, "hint": "h"}]
    coloured, plain = _on_terminal(api, COLUMNS="60"), _on_terminal(api, COLUMNS="60", NO_COLOR="1")
    assert b"\x1b[31mmanifest_invalid\x1b[0m" in coloured
    assert b"\x1b" not in plain
    assert all(len(line) <= 60 for line in plain.decode().splitlines())
    assert "…" in plain.decode()
    piped = subprocess.run([*COMMAND, "rejected"], env=environ(api), capture_output=True, check=True).stdout
    assert b"x" * 200 in piped
    assert b"\x1b" not in piped


def test_what_helps_is_whole_on_a_narrow_terminal(api):
    """A cure that is cut helps nobody; neither does one without what was found."""
    helps = "latticectl wanted --by somebody with a narrow terminal"
    api.rejected = [{"name": "bad", "code": "unreadable", "reason": "r" * 200, "hint": helps}]
    api.health = (
        200,
        {
            "status": "ok",
            "problems": [{"code": "a", "detail": f"problem: {helps}"}],
            "notes": [{"code": "b", "detail": f"note: {helps}"}],
            "sandbox": {"level": "isolated", "missing": [{"token": "cgroup", "step": "w" * 40, "fix": helps}]},
        },
    )
    assert helps in _on_terminal(api, "rejected", "--hints", COLUMNS="60").decode()
    health = _on_terminal(api, "health", COLUMNS="60").decode()
    assert (f"problem: {helps}" in health, f"note: {helps}" in health, health.count(helps)) == (True, True, 3)
    doctor = _on_terminal(api, "doctor", COLUMNS="60", code=3).decode()
    assert f"a: problem: {helps}" in doctor
    assert helps in next(line for line in doctor.splitlines() if line.startswith("cgroups"))


def _on_terminal(api: api_server.Api, *words: str, code: int = 0, **more: str) -> bytes:
    master, slave = os.openpty()
    env = environ(api, TERM="xterm", LANG="C.UTF-8", **more)
    try:
        done = subprocess.run([*COMMAND, *(words or ("rejected",))], stdout=slave, env=env, check=False)
        assert done.returncode == code
    finally:
        found = terminals.shown(master, slave)
    return found


def test_every_hint_names_an_existing_verb():
    """Verbs are matched by their first word."""
    for said, verb in main._MEANT.items():
        assert said not in main.VERBS
        assert verb == "--help" or verb.split()[0] in main.VERBS


def test_end_of_the_process_loses_nothing(api):
    """What is to be called at its end is called, and all output arrives, though the interpreter is not taken apart."""
    script = """
import atexit, sys
from latticed.ctl import main

atexit.register(sys.stdout.write, "called\\n")
sys.argv[1:] = ["list", "--socket", "/nowhere"]
sys.stdout.write("said\\n")
main.program()
"""
    done = subprocess.run([sys.executable, "-c", script], env=environ(api), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "said\ncalled\n")
    assert done.stderr.startswith("error: ")
