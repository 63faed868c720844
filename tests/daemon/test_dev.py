"""latticectl run and dev: a bundle is tried in a daemon of its own, of which nothing stays."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latticed import settings
from latticed.ctl import trial
from tests.house import long, processes

pytestmark = pytest.mark.daemon

ID = "acme.try"
PLUGIN = """#!/usr/bin/env python3
import sys
from latticed.sdk import HostError, Plugin

class Try(Plugin):
    def do_greet(self, payload):
        print("asked for", payload, file=sys.stderr)
        return {"hello": payload}

    def do_count(self, payload):
        count = int(self.kv.get("count") or 0) + 1
        self.kv.put("count", str(count))
        return count

    def do_publish(self, payload):
        self.static.put("page.txt", "hello")
        return "published"

    def do_configured(self, payload):
        return self.config

    def do_fetch(self, url):
        return self.http.get(url, headers={"Authorization": "Bearer ${secret:API_TOKEN}"}).status

Try().run()
"""
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
MANIFEST = {
    "schema": "latticed.manifest.v2",
    "id": ID,
    "name": "Try",
    "type": "system",
    "version": "0.1.0",
    "capabilities": ["kv:read", "kv:write"],
}


@dataclass
class Desk:
    """A bundle that a user writes who is not root, and what latticectl leaves in his temporary directory."""

    home: Path
    user: processes.User | None
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        return self.home / "try"

    def write(self, artifact: str = PLUGIN, **fields: Any) -> None:
        """The bundle with these fields of its manifest; an editor's way: the manifest last."""
        self.bundle.mkdir(exist_ok=True)
        (self.bundle / "artifact").write_text(artifact)
        (self.bundle / "manifest.json").write_text(json.dumps({**MANIFEST, **fields}))
        self.own()

    def own(self) -> None:
        if self.user is not None:
            for path in (self.bundle, *self.bundle.rglob("*")):
                os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)

    def start(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        python = processes.reachable_python() if self.user else sys.executable
        ids: dict[str, Any] = {}
        if self.user is not None:
            ids = {"user": self.user.uid, "group": self.user.gid, "extra_groups": []}
        environ = {"PATH": os.defpath, "HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), **self.environ}
        command = [python, "-P", "-m", "latticed.ctl.main", *words]
        return subprocess.Popen(command, cwd=self.home, env=environ, start_new_session=True, **ids, **how)

    def run(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.start("run", str(self.bundle), *words, **pipes) as process:
            out, err = process.communicate(stdin, processes.LONG_PATIENCE_S)
        return subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())

    def left(self) -> list[str]:
        """What is there of the daemons that latticectl made: directories, and processes that name one."""
        found = [path.name for path in (self.home / "tmp").iterdir()]
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if os.fsencode(self.home / "tmp") in line.read_bytes():
                    found.append(line.parent.name)
        return found


@pytest.fixture
def desk(tmp_path):
    user = processes.STRANGER if os.getuid() == 0 else None
    with processes.home_of(user, tmp_path) as home:
        (home / "tmp").mkdir(mode=0o700)
        made = Desk(home, user)
        if user is not None:
            os.chown(home / "tmp", user.uid, user.gid)
        made.write()
        yield made


def test_run_prints_the_result_and_what_the_plugin_wrote(desk):
    """Of a bundle that nobody signed, with the payload from stdin; the machine's own daemon is not asked."""
    desk.environ = {"LATTICED_SOCKET": "/nonexistent", "LATTICED_TRUST": "/nonexistent"}
    done = desk.run("greet", "-", stdin=b'{"name": "you"}')
    assert (done.returncode, json.loads(done.stdout)) == (0, {"hello": {"name": "you"}}), done.stderr
    assert done.stderr == f"{ID}: asked for {{'name': 'you'}}\n"
    assert json.loads(desk.run("greet", '"x"', "--format", "json").stdout)["result"] == {"hello": "x"}
    assert desk.left() == []


def test_run_grants_what_is_named_and_tells_what_was_denied(desk):
    """Each run begins anew: values are not kept."""
    desk.write(capabilities=["kv:read", "kv:write", "static:write"])
    denied = desk.run("publish")
    assert denied.returncode == 1
    assert "denied: static.put: capability_not_granted" in denied.stderr
    assert "--accept static:write" in denied.stderr
    assert (desk.run("publish", "--accept", "static:write").stdout, desk.run("count").stdout) == ("published\n", "1\n")
    assert desk.run("count").stdout == "1\n"


def test_run_configures_the_plugin(desk):
    """From a file or stdin, TOML or JSON; what does not fit is told, and nothing is left."""
    desk.write(config=SCHEMA)
    (desk.home / "try.toml").write_text('city = "Bonn"')
    (desk.home / "other.json").write_text('{"city": 1}')
    assert json.loads(desk.run("configured", "-f", "try.toml").stdout) == {"city": "Bonn"}
    assert json.loads(desk.run("configured", "-f", "-", stdin=b'{"city": "Ulm"}').stdout) == {"city": "Ulm"}
    misfit = desk.run("configured", "--file", "other.json")
    assert (misfit.returncode, misfit.stdout) == (1, "")
    assert "city: expected" in misfit.stderr
    assert "error: other.json does not fit the schema of acme.try\nhint: `config` in its manifest" in misfit.stderr
    lacking = desk.run("configured")
    assert (lacking.returncode, "hint: -f FILE configures it\n" in lacking.stderr) == (1, True), lacking.stderr
    assert desk.left() == []


def test_run_lets_the_plugin_use_secrets_whose_values_nobody_sees(desk):
    """From a file, stdin or the environment, never from an argument, which others see."""
    heard = []

    class Web(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.headers["Authorization"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    (desk.home / "token").write_text("from a file\n")
    desk.environ = {"API_TOKEN": "of the environment"}
    desk.write(capabilities=["http:egress"], egress={"hosts": ["127.0.0.1:1"]})
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(server.serve_forever)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        fetch = ("fetch", json.dumps(url), "--accept", "http:egress", "--accept", f"origin={url}")
        try:
            told = [
                desk.run(*fetch, "--secret", "API_TOKEN=@token"),
                desk.run(*fetch, "--secret", "API_TOKEN=@-", stdin=b"from stdin"),
                desk.run(*fetch, "--secret", "API_TOKEN=env"),
            ]
            without = desk.run(*fetch)
        finally:
            server.shutdown()
    assert [(one.returncode, one.stdout) for one in told] == [(0, "204\n")] * 3, told
    assert heard == ["Bearer from a file", "Bearer from stdin", "Bearer of the environment"]
    assert not any("from" in one.stderr or "environment" in one.stderr for one in told)
    assert (without.returncode, "bound no secret 'API_TOKEN' to this plugin" in without.stderr) == (1, True), without
    assert desk.left() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--secret", "API_TOKEN=sesame"), "--secret API_TOKEN: expected =@FILE or =env, found another form"),
        (("--secret", "API_TOKEN"), "--secret API_TOKEN: expected =@FILE or =env, found another form"),
        (("--secret", "API_TOKEN=env"), "--secret API_TOKEN: expected a value, found nothing"),
        (("--secret", "A=@/dev/null", "--secret", "B=env"), "--secret A: expected a value, found nothing"),
        (("--secret", "A=@try/artifact", "--secret", "A=env"), "--secret A: expected it once, found it twice"),
        (("--secret", "A=@/nonexistent"), "cannot read /nonexistent"),
        (("--secret", "A=@-", "-f", "-"), "expected one thing to be read from stdin, found several"),
        (("-", "-f", "-"), "expected one thing to be read from stdin, found several"),
        (("-f", "/nonexistent.toml"), "cannot read /nonexistent.toml"),
    ],
)
def test_what_a_trial_is_given_is_checked_before_anything_is_started(desk, words, said):
    done = desk.run("greet", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert "sesame" not in done.stderr


def test_run_takes_a_manifest_that_would_be_too_large_when_indented(desk):
    names = {f"p{i}": {"type": "string", "enum": ["a", "b", "c"]} for i in range(900)}
    desk.write(config={"type": "object", "properties": names})
    done = desk.run("greet", '"x"')
    assert (done.returncode, json.loads(done.stdout)) == (0, {"hello": "x"}), done.stderr


def test_run_packs_a_directory_of_modules(desk):
    desk.write("")
    (desk.bundle / "src").mkdir()
    (desk.bundle / "src" / "words.py").write_text("GREETING = 'from a module'\n")
    (desk.bundle / "src" / "__main__.py").write_text(
        "import words\nfrom latticed.sdk import Plugin\n\nclass Try(Plugin):\n"
        "    def do_greet(self, payload):\n        return words.GREETING\n\nTry().run()\n"
    )
    desk.own()
    assert desk.run("greet").stdout == "from a module\n"


def test_run_packs_required_packages_beside_the_modules(desk):
    """Those of `requirements.txt`, here from a directory of wheels."""
    shelf = desk.home / "shelf"
    shelf.mkdir(mode=0o755)
    wheel = shelf / "words-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {
            "words.py": "GREETING = 'from a package'\n",
            "words-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: words\nVersion: 1.0\n",
            "words-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }.items():
            archive.writestr(path, text)
    desk.write("")
    (desk.bundle / "src").mkdir()
    (desk.bundle / "src" / "__main__.py").write_text(
        "import words\nfrom latticed.sdk import Plugin\n\nclass Try(Plugin):\n"
        "    def do_greet(self, payload):\n        return words.GREETING\n\nTry().run()\n"
    )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (desk.bundle / "requirements.txt").write_text(f"words==1.0 --hash=sha256:{digest}\n")
    desk.own()
    desk.environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": os.devnull}
    assert desk.run("greet").stdout == "from a package\n"
    (desk.bundle / "requirements.txt").write_text("words==1.0\n")
    refused = desk.run("greet")
    assert (refused.returncode, "error: words 1.0 has no hash" in refused.stderr) == (1, True), refused.stderr
    assert desk.left() == []


def test_run_tells_that_a_plugin_waits_for_its_log(desk):
    """It may write only so fast; what is wrong then is not that it computes for too long."""
    noisy = PLUGIN.replace('print("asked for", payload, file=sys.stderr)', 'print("x" * (10 << 20), file=sys.stderr)')
    desk.write(noisy, runtime={"limits": {"invoke_timeout_s": 4}})
    found = desk.run("greet")
    assert found.returncode == 1
    assert "expected a reply within 4 s, found none: it writes more to its log" in found.stderr
    assert "hint: write less: of a line 8,192 bytes are kept" in found.stderr
    assert len(found.stderr) < 20_000
    assert desk.left() == []


def test_run_says_why_a_bundle_is_not_installed(desk):
    """Not that it cannot be stopped then."""
    refused = desk.run("greet", "--accept", "http:egress")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: expected capabilities that the manifest declares (kv:read, kv:write)")


def test_run_says_what_is_wrong_with_a_bundle(desk):
    """As `latticectl sign` and the daemon do; nothing is left behind."""
    desk.write(capabilities=["kv:steal"])
    found = desk.run("greet")
    assert (found.returncode, found.stderr.splitlines()[0]) == (
        1,
        f"error: {desk.bundle}: expected known capabilities, found 'kv:steal'",
    )
    desk.write("no script")
    found = desk.run("greet")
    assert (found.returncode, "its first bytes are b'no scrip'" in found.stderr) == (1, True), found.stderr
    (desk.bundle / "artifact").unlink()
    (desk.bundle / "artifact").symlink_to("/etc/passwd")
    found = desk.run("greet")
    assert (found.returncode, f"error: cannot read {desk.bundle}" in found.stderr) == (1, True), found.stderr
    assert desk.left() == []


def test_interrupted_run_and_dev_leave_nothing_behind(desk):
    """Ctrl-C at any moment, SIGTERM, and twice; after SIGKILL the daemon ends by itself, and the next run clears up."""
    rng = random.Random(18)
    for turn in range(long.times(4, 40)):
        words = ("run", str(desk.bundle), "greet") if turn % 4 < 2 else ("dev", str(desk.bundle))
        with desk.start(
            *words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(rng.uniform(0.1, 1.5))  # where it is then does not matter
            for _ in range(1 + turn % 2):
                process.send_signal(signal.SIGINT if turn % 3 else signal.SIGTERM)
            process.wait(processes.PATIENCE_S)
        assert desk.left() == [], turn
    with desk.start("run", str(desk.bundle), "greet", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        processes.until(lambda: list((desk.home / "tmp").glob("*/run/control.sock")), what="its daemon")
        process.kill()
    processes.until(lambda: len(desk.left()) == 1, what="the daemon to end")
    assert desk.run("greet").returncode == 0
    assert desk.left() == []


def test_run_that_is_interrupted_while_it_ends_leaves_nothing_behind(desk):
    """The first interruption may come while the daemon ends, or its directory is removed."""
    rng = random.Random(19)
    for turn in range(long.times(4, 40)):
        with desk.start("run", str(desk.bundle), "greet", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(ID.encode())  # all that follows is the end
            time.sleep(rng.uniform(0, 0.2))  # where it is then does not matter
            process.send_signal(signal.SIGTERM)
            process.wait(processes.PATIENCE_S)
        assert desk.left() == [], turn


def test_run_finds_a_directory_that_it_may_write_in(desk):
    """As after `su`, which keeps the other user's XDG_RUNTIME_DIR."""
    desk.environ = {"XDG_RUNTIME_DIR": "/proc/1/fd/nothing", "TMPDIR": "/nonexistent"}
    done = desk.run("greet", "1")
    assert (done.returncode, json.loads(done.stdout or "0")) == (0, {"hello": 1}), done.stderr


class Dev:
    """latticectl dev as a process: what it prints, and what is typed."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self.process, self.reading, self.writing = process, reading, writing
        self.text = ""

    def until(self, *words: str) -> str:
        """What it printed until it had printed all of `words`, in any order; the rest is looked at the next time."""
        os.set_blocking(self.reading, False)

        def found() -> bool:
            with contextlib.suppress(BlockingIOError):
                self.text += os.read(self.reading, 1 << 16).decode().replace("\r\n", "\n")
            return all(word in self.text for word in words)

        processes.until(found, what=f"{words} after {self.text!r}")
        end = max(self.text.index(word) + len(word) for word in words)
        before, self.text = self.text[:end], self.text[end:]
        return before

    def type(self, line: str = "") -> None:
        os.write(self.writing, f"{line}\n".encode())


@contextlib.contextmanager
def developing(desk: Desk, *words: str, terminal: bool = False) -> Iterator[Dev]:
    if terminal:
        ours, theirs = pty.openpty()
        quiet = termios.tcgetattr(theirs)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, quiet)
        pipes: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    else:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = desk.start("dev", str(desk.bundle), *words, **pipes)
    try:
        if terminal:
            os.close(theirs)
            yield Dev(process, ours, ours)
        else:
            assert process.stdout is not None
            assert process.stdin is not None
            yield Dev(process, process.stdout.fileno(), process.stdin.fileno())
    finally:
        process.kill()
        process.wait()
        if terminal:
            os.close(ours)
        else:
            process.communicate()


def test_dev_takes_each_change_and_repeats_what_was_asked(desk):
    """Host calls are shown with their decision; what cannot be used is told, and what ran goes on."""
    with developing(desk, "--invoke", "greet", "--payload", '"you"') as dev:
        assert "DEVELOPMENT DAEMON" in dev.until(f"{ID} runs")
        dev.type()
        dev.until('"hello": "you"', "stderr asked for you")
        dev.type("count")
        dev.until("1\n", "call   kv.get allow", "call   kv.put allow")
        desk.write(PLUGIN.replace('"hello"', '"goodbye"'))
        dev.until("reloaded in")
        dev.type('greet "me"')
        dev.until('"goodbye": "me"')
        dev.type("count")
        dev.until("2\n")  # values stay while it runs
        desk.write(capabilities=["kv:steal"])
        dev.until("expected known capabilities, found 'kv:steal'")
        dev.type()
        dev.until("3\n")
        desk.write(version="0.0.9", capabilities=["kv:read", "kv:write", "static:write"])
        dev.until("reloaded in", "not granted: static:write")
        dev.type("publish")
        dev.until("error: ", "deny capability_not_granted")
        dev.type("nonsense")
        dev.until("error: ")
        dev.type("quit")
        assert dev.process.wait(processes.PATIENCE_S) == 0
    assert desk.left() == []


def test_dev_takes_what_was_mended_after_the_daemon_refused_it(desk):
    """Also when it is refused twice, when the change is only undone, and when the first bundle was refused."""
    future = {"requires_host": ">=99"}
    desk.write(**future)
    with developing(desk) as dev:
        dev.until("error: expected a host of version >=99")
        desk.write()
        assert "error: " not in dev.until(f"{ID} runs")
        desk.write(**future)
        dev.until("error: expected a host of version >=99")
        desk.write(requires_host=">=98")
        assert "error: expected a host of version >=99" not in dev.until("error: expected a host of version >=98")
        desk.write(PLUGIN.replace('"hello"', '"hallo"'))
        assert "error: " not in dev.until("reloaded in")
        dev.type('greet "me"')
        dev.until('"hallo": "me"')
        desk.write(PLUGIN.replace('"hello"', '"hola"'), **future)
        dev.until("error: expected a host of version >=99")
        desk.write(PLUGIN.replace('"hello"', '"hallo"'))
        assert "error: " not in dev.until("reloaded in")
        dev.type('greet "me"')
        dev.until('"hallo": "me"')
        dev.type("quit")
        assert dev.process.wait(processes.PATIENCE_S) == 0
    assert desk.left() == []


def test_dev_starts_what_was_mended_after_it_could_not_be_started(desk):
    """It is installed then, with the version before."""
    desk.write(config=SCHEMA)
    with developing(desk) as dev:
        dev.until("error: ", "config")
        desk.write(PLUGIN.replace('"hello"', '"hallo"'))
        assert "error: " not in dev.until(f"{ID} runs")
        dev.type('greet "me"')
        dev.until('"hallo": "me"')


def test_dev_configures_the_plugin_and_binds_its_secrets(desk):
    desk.write(config=SCHEMA)
    (desk.home / "try.toml").write_text('city = "Bonn"')
    (desk.home / "token").write_text("sesame")
    with developing(desk, "-f", "try.toml", "--secret", "API_TOKEN=@token", "--invoke", "configured") as dev:
        dev.until(f"{ID} runs")
        dev.type()
        dev.until('"city": "Bonn"')
        desk.write(PLUGIN.replace('"hello"', '"goodbye"'), config=SCHEMA)
        dev.until("reloaded in")
        dev.type()
        dev.until('"city": "Bonn"')
        dev.type("quit")
        assert dev.process.wait(processes.PATIENCE_S) == 0
    assert desk.left() == []


def test_dev_in_a_large_directory_beside_another_daemon_ends_with_its_reader(desk):
    """With links that lead out, to nowhere and in a circle; a change among 10,000 files is seen. `dev | head` ends
    without another line.
    """
    data = desk.bundle / "data"
    data.mkdir(parents=True)
    for number in range(10_000):
        (data / str(number)).touch()
    for name, target in (("out", "/etc"), ("nowhere", "/nonexistent"), ("circle", ".")):
        (desk.bundle / name).symlink_to(target)
    desk.own()
    with developing(desk) as dev:
        dev.until(f"{ID} runs")
        beside = desk.run("greet", '"x"')
        assert (beside.returncode, json.loads(beside.stdout)) == (0, {"hello": "x"}), beside.stderr
        dev.type("count")
        dev.until("1\n")
        desk.write(PLUGIN.replace('"hello"', '"goodbye"'))
        dev.until("reloaded in")
        dev.type('greet "me"')
        dev.until('"goodbye": "me"')
        assert dev.process.stdout is not None
        dev.process.stdout.close()
        # The latter when it had a line to print at that moment, as other programs in front of `head`.
        assert dev.process.wait(processes.PATIENCE_S) in {0, 128 + signal.SIGPIPE}
    assert desk.left() == []


def test_dev_without_its_compiler_says_so_and_starts_nothing(desk):
    with desk.start(
        *("dev", str(desk.bundle), "--build", "no-such-compiler -o artifact main.c"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        said, _ = process.communicate(timeout=processes.PATIENCE_S)
    assert process.returncode == 1
    assert b"error: no-such-compiler -o artifact main.c ended with 127" in said
    assert b"not found" in said
    assert desk.left() == []


def test_dev_asks_once_on_a_terminal(desk):
    """Ctrl-C ends it, and nothing is left."""
    desk.write(capabilities=["static:write"])
    with developing(desk, terminal=True) as dev:
        assert "asks for static:write" in dev.until("y and Enter, or Enter alone")
        dev.type("y")
        dev.until(f"{ID} runs")
        dev.type("publish")
        dev.until("published")
        desk.write(version="0.2.0", capabilities=["static:write"])
        assert "asks for" not in dev.until("reloaded in")
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(processes.PATIENCE_S) == 0
    assert desk.left() == []


def test_commands_that_help_reach_the_daemon_of_dev(desk):
    """Not the machine's own."""
    desk.write(PLUGIN.replace("/usr/bin/env python3", "/usr/bin/nothere"))
    with developing(desk) as dev:
        dev.until("error: ", "node, python3, sh")
        dev.type("greet")
        assert "/run/control.sock info acme.try" in dev.until("hint: latticectl --socket ", f"info {ID}\n")


def test_daemon_of_a_trial_has_no_root_helper(tmp_path):
    """All its paths are in its own directory."""
    file = tmp_path / "latticed.toml"
    file.write_text(trial._settings(tmp_path))
    found = settings.load(file, {}, os.geteuid())
    assert found.http.listen == "127.0.0.1:0", "that of the machine's own daemon may be taken"
    for path in (found.apply.socket, found.plugin_dir, found.state_dir, found.control_socket, found.trust):
        assert Path(path).is_relative_to(tmp_path)


def test_dev_builds_what_is_compiled(desk):
    """A failed build is told, and what ran goes on; one that rewrites the same files sets off no other one."""
    desk.write("")
    (desk.bundle / "main.py.in").write_text(PLUGIN)
    (desk.bundle / "link").symlink_to("/etc")
    desk.own()
    build = (
        "echo x >> ../builds; cp main.py.in copy; grep -q HALT main.py.in && echo halted && exit 3; cp copy artifact"
    )
    with developing(desk, "--build", build) as dev:
        dev.until(f"{ID} runs")
        (desk.bundle / "main.py.in").write_text(PLUGIN.replace('"hello"', '"built"'))
        dev.until("reloaded in")
        dev.type('greet "it"')
        dev.until('"built": "it"')
        (desk.bundle / "main.py.in").write_text("HALT")
        assert "ended with 3: halted" in dev.until("halted\n")
        dev.type()
        dev.until('"built": "it"')
        # Quiet now: the build's own files are no change.
        counted = len((desk.home / "builds").read_text())
        dev.type()
        dev.until('"built": "it"')
        assert len((desk.home / "builds").read_text()) == counted


def test_dev_takes_what_is_written_while_a_build_that_changes_nothing_runs(desk):
    desk.write("")
    (desk.bundle / "main.py.in").write_text(PLUGIN)
    desk.own()
    build = "cp main.py.in copy; cp copy artifact; echo x >> ../copied; while [ -e ../hold ]; do sleep 0.05; done"
    copied = desk.home / "copied"
    with developing(desk, "--build", build) as dev:
        dev.until(f"{ID} runs")
        (desk.home / "hold").touch()
        before = len(copied.read_text())
        (desk.bundle / "notes").write_text("not of the plugin")
        processes.until(lambda: len(copied.read_text()) > before, what="a build")
        (desk.bundle / "main.py.in").write_text(PLUGIN.replace('"hello"', '"built"'))
        (desk.home / "hold").unlink()
        dev.until("reloaded in")
        dev.type('greet "it"')
        dev.until('"built": "it"')


def test_dev_comes_to_rest_though_a_build_goes_on_after_it_wrote_a_file(desk):
    """As a compiler's does that writes an object file, and links it then."""
    desk.write("")
    (desk.bundle / "main.py.in").write_text(PLUGIN)
    desk.own()
    build = "echo x >> ../builds; cp main.py.in copy; sleep 0.5; cp copy artifact"

    def rests():
        before = (desk.home / "builds").read_text()
        time.sleep(1.5)
        return (desk.home / "builds").read_text() == before

    with developing(desk, "--build", build) as dev:
        dev.until(f"{ID} runs")
        (desk.bundle / "main.py.in").write_text(PLUGIN.replace('"hello"', '"built"'))
        dev.until("reloaded in")
        processes.until(rests, what="the last build")


def test_dev_that_is_ended_while_it_builds_leaves_no_process(desk):
    """Neither the command nor what it started."""
    build = f"echo $$ > {desk.home}/pid; sleep 1000; true"
    with desk.start("dev", str(desk.bundle), "--build", build, stdin=subprocess.DEVNULL) as process:
        processes.until(lambda: (desk.home / "pid").exists() and (desk.home / "pid").read_text(), what="the build")
        group = int((desk.home / "pid").read_text())
        process.send_signal(signal.SIGTERM)
        process.wait(processes.PATIENCE_S)
    processes.until(lambda: not alive(group), what="the build to end")
    assert desk.left() == []


def alive(group: int) -> list[str]:
    """The processes of a group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found
