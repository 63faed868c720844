"""Run latticed on a signed copy of the sample bundles: interactively (`run`) or as a demonstration (`demo`).

Both sign the copies with a new key, in a directory that only you can change, because the samples in the repository are
signed with a key whose private half is public. Nothing outside that directory is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLES: Final = Path(__file__).resolve().parent
BIN: Final = Path(sys.executable).parent
PUBLISHER: Final = "tour"
SOCKET_PATH_BYTES: Final = 107  # unix(7): sun_path less its NUL
DEADLINE_S: Final = 60.0
FOREIGN: Final = ("LATTICE", "LISTEN_", "NOTIFY_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY")
HELLO: Final = "sample.hello-system"
WEB: Final = "sample.web-check"
WORKER: Final = "sample.hello-worker"
WASM: Final = "sample.hello-wasm"


class TourEnded(Exception):
    """A step had an unexpected result: what was expected, and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A directory with everything one daemon needs."""

    base: Path

    @property
    def socket(self) -> Path:
        return self.base / "run" / "control.sock"

    @property
    def environment(self) -> dict[str, str]:
        """Our environment without variables that override the settings, with LATTICED_SOCKET for latticectl."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {**kept, "LATTICED_SOCKET": str(self.socket), "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}"}

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run latticectl; it has to succeed if `check`."""
        how: dict[str, Any] = {"env": self.environment, "cwd": self.base, "capture_output": True, "text": True}
        command = [str(BIN / "latticectl"), *words]
        done = subprocess.run(command, check=False, timeout=DEADLINE_S, **how)  # noqa: S603 - our own words
        if check and done.returncode:
            raise TourEnded(f"latticectl {shlex.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done


# Getting ready.


def candidates() -> Iterator[Callable[[], Path]]:
    """Where the tour may live, best first: in the checkout, in the session's runtime directory, in a private one."""
    checkout = SAMPLES.parent
    yield lambda: checkout / ".run"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield lambda: Path(runtime) / f"latticed-tour-{hashlib.sha256(os.fsencode(checkout)).hexdigest()[:8]}"
    yield lambda: Path(tempfile.mkdtemp(prefix="latticed-tour-"))
    yield lambda: Path(tempfile.mkdtemp(prefix="latticed-tour-", dir="/tmp"))


def settle() -> Place:
    """The first candidate that is short, ours, and that nobody else can change."""
    for candidate in candidates():
        place = Place(base=candidate())
        fault = unfit(place)
        if fault is None:
            return place
        print(f"The tour cannot live in {place.base}: {fault}")
        with contextlib.suppress(OSError):
            place.base.rmdir()
    raise TourEnded("expected a directory that only you can change and whose path is short, found none")


def unfit(place: Place) -> str | None:
    """Why the tour cannot live there, or None; who could change it is asked of latticectl, which knows the rule."""
    longest = len(os.fsencode(place.socket)) + len("/demo-12345678")
    if longest > SOCKET_PATH_BYTES:
        return f"its socket's path would be up to {longest} bytes long, {SOCKET_PATH_BYTES} is the limit"
    probe = place.base / f".probe-{os.getpid()}.json"
    try:
        place.base.mkdir(mode=0o700, exist_ok=True)
        place.base.chmod(0o700)
        write(probe, "{}")
        asked = place.ctl("trust", "show", "--trust", str(probe), check=False)
        probe.unlink()
    except OSError as error:
        return str(error.strerror)
    return asked.stderr.partition("\n")[0].removeprefix("error: ") if asked.returncode else None


def prepare(place: Place) -> None:
    """Key, trust policy, settings, and copies of the samples signed with that key; key and state are kept."""
    key, trust = place.base / "author.key", place.base / "trust.json"
    for name in ("plugins", "state", "run"):
        (place.base / name).mkdir(mode=0o700, exist_ok=True)
    if not key.exists():
        place.ctl("key", "generate", str(key))
    for manifest in sorted(SAMPLES.glob("*/manifest.json")):
        copy(place, manifest.parent, key)
    public = place.ctl("key", "show", str(key)).stdout.strip()
    place.ctl("trust", "add", PUBLISHER, public, "--ids", "sample.*", "--trust", str(trust))
    paths = {"plugin_dir": "plugins", "state_dir": "state", "runtime_dir": "run", "trust": "trust.json"}
    toml = (f"{name} = {json.dumps(str(place.base / path), ensure_ascii=False)}\n" for name, path in paths.items())
    http = '\n[http]\nlisten = "127.0.0.1:0"\n'  # any free port: the record of a worker names it
    write(place.base / "latticed.toml", "".join(toml) + http)


def copy(place: Place, sample: Path, key: Path) -> None:
    """Sign a copy, unless it is refused before its signature is looked at; one is changed after it was signed."""
    fresh, final = Path(tempfile.mkdtemp(prefix=".", dir=place.base)), place.base / "plugins" / sample.name
    for name in ("manifest.json", "artifact"):
        shutil.copyfile(sample / name, fresh / name)
    if sample.name not in {"refused-unknown-capability", "refused-untrusted"}:
        place.ctl("sign", "--key", str(key), "--publisher", PUBLISHER, str(fresh))
    if sample.name == "refused-tampered":
        with (fresh / "artifact").open("ab") as artifact:
            artifact.write(b"#\n")
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)


def write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


# Playing with it.


def run() -> NoReturn:
    """Never returns: becomes latticed, in the foreground."""
    place = settle()
    if place.ctl("status", check=False).returncode == 0:
        raise TourEnded(f"expected no latticed at {place.socket}, found one: make run is already running")
    prepare(place)
    env, artifact = place.base / "env", shlex.quote(str(place.base / "plugins/hello-system/artifact"))
    names = {"LATTICED_SOCKET": "run/control.sock", "LATTICED_TRUST": "trust.json", "LATTICE_PLUGIN_DIR": "plugins"}
    lines = [f"export {name}={shlex.quote(str(place.base / path))}\n" for name, path in names.items()]
    write(env, "".join([f"export PATH={shlex.quote(str(BIN))}:$PATH\n", *lines]))
    print(f"latticed in {place.base}; Ctrl-C ends it. In a second terminal:\n\n  . {shlex.quote(str(env))}")
    for words in (
        "list",
        "rejected",
        f"install {HELLO}",
        f"activate {HELLO}",
        f"invoke {HELLO} greet",
        f"info {HELLO}",
    ):
        print(f"  latticectl {words}")
    print(f"\nChange a byte of it on disk, see why it stopped, put it back:\n\n  sed -i s/Hello/Jello/ {artifact}")
    print(f"  latticectl info {HELLO}\n  sed -i s/Jello/Hello/ {artifact}\n  latticectl wait {HELLO}\n", flush=True)
    command = [str(BIN / "latticed"), "--config", str(place.base / "latticed.toml")]
    os.execve(command[0], command, place.environment)  # noqa: S606 - no shell is meant


def demo() -> None:
    """The whole story, with real commands; TourEnded at the first thing that is not as told."""
    home = settle().base
    place = Place(base=Path(tempfile.mkdtemp(prefix="demo-", dir=home)))
    try:
        prepare(place)
        with daemon(place) as process:
            play(Story(place=place), process)
        print("\n# Every step went as told.")
    finally:
        shutil.rmtree(place.base, ignore_errors=True)
        with contextlib.suppress(OSError):
            home.rmdir()  # only when nothing else is in it


@contextlib.contextmanager
def daemon(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """A latticed in the background; it is ended whatever happens, and its log shown if something did."""
    print("$ latticed --config latticed.toml > latticed.log 2>&1 &", flush=True)
    log = place.base / "latticed.log"
    with log.open("wb") as out:
        how: dict[str, Any] = {"env": place.environment, "cwd": place.base, "stdout": out, "stderr": out}
        process = subprocess.Popen([str(BIN / "latticed"), "--config", "latticed.toml"], **how)  # noqa: S603 - see ctl
    try:
        deadline = time.monotonic() + DEADLINE_S
        while place.ctl("status", check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise TourEnded("expected latticed to answer, found that it did not")
            time.sleep(0.05)
        yield process
    except BaseException:
        print(f"\nlatticed's log:\n{log.read_text(errors='backslashreplace')[-4000:]}", file=sys.stderr)
        raise
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=DEADLINE_S)
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Lines typed into a shell in the tour's directory, and a look at what they did."""

    place: Place

    def type(self, line: str, *shows: str, exits: int = 0) -> None:
        """Print and run one line; it must end with `exits`, and its output must contain each of `shows`."""
        print(f"$ {line}", flush=True)
        how: dict[str, Any] = {"env": self.place.environment, "cwd": self.place.base, "text": True}
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        with subprocess.Popen(["/bin/sh", "-c", line], **how) as shell:  # noqa: S603 - our own words
            try:
                said, _ = shell.communicate(timeout=DEADLINE_S)
            except BaseException:
                # The whole group: what the shell has started would outlive it, and the tour too.
                os.killpg(shell.pid, signal.SIGKILL)
                raise
        print(said, end=f"[exit {shell.returncode}]\n" if shell.returncode else "", flush=True)
        if shell.returncode != exits:
            raise TourEnded(f"{line}: expected exit {exits}, found {shell.returncode}")
        if missing := [wanted for wanted in shows if wanted not in said]:
            raise TourEnded(f"{line}: expected {missing[0]!r} in its output, found none")

    def expect(self, plugin_id: str, **wanted: str | bool | list[str]) -> None:
        """Fail unless the plugin's record says so; `state` and `code` are its runtime's."""
        rows = json.loads(self.place.ctl("list", "--format", "json").stdout)
        record: dict[str, Any] = next((row for row in rows if row["id"] == plugin_id), {})
        runtime = record.get("runtime", {})
        flat = {**record, "state": runtime.get("state"), "code": runtime.get("last_error", {}).get("code")}
        found = {name: flat.get(name) for name in wanted}
        if found != wanted:
            raise TourEnded(f"{plugin_id}: expected {wanted}, found {found}")


def play(story: Story, process: subprocess.Popen[bytes]) -> None:
    print("\n# Eleven bundles, verified offline by the daemon's own rules: three of them are meant to be refused.")
    story.type("latticectl verify --trust trust.json plugins/*/", "digest_mismatch", "unknown_capability", exits=6)
    print("\n# The same bundles as the daemon sees them.")
    story.type("latticectl list", HELLO, WEB, "sample.hello-worker", "sample.hello-wasm")
    story.type("latticectl rejected", "digest_mismatch", "unknown_capability", "publisher_untrusted")
    print("\n# A verified bundle does not run yet: an operator installs and activates it.")
    story.type(f"latticectl install {HELLO}")
    story.type(f"latticectl activate {HELLO}")
    story.expect(HELLO, status="active", available=True, state="armed")
    story.type(f"latticectl info {HELLO}", "armed", "process", "sandbox")
    print("\n# It runs as a process of its own in a sandbox, and reaches the host only through its Gate.")
    story.type(f"""latticectl invoke {HELLO} greet '{{"name": "Ada"}}'""", "Ada")
    story.type(f"latticectl logs {HELLO}", "greeted")
    print("\n# One byte of it changes on disk: it is stopped, with the reason.")
    story.type("sed -i s/Hello/Jello/ plugins/hello-system/artifact")
    story.type(f"latticectl wait {HELLO} --for stopped")
    story.type(f"latticectl info {HELLO}", "refused: digest_mismatch")
    story.expect(HELLO, status="active", available=False, state="failed", code="digest_mismatch")
    print("\n# The byte is put back: the plugin is started again by itself.")
    story.type("sed -i s/Jello/Hello/ plugins/hello-system/artifact")
    story.type(f"latticectl wait {HELLO} --for active")
    story.expect(HELLO, status="active", available=True, state="armed")
    play_on(story)
    print("\n# All of it is in the audit record, and verify shows that nobody changed the record.")
    story.type("latticectl audit query --action plugin.runtime", "digest_mismatch")
    story.type("latticectl audit verify", "the chain holds")
    print("\n# SIGTERM: plugins are stopped, the record is signed, the daemon ends with 0.\n$ kill %1; wait %1")
    process.terminate()
    print(code := process.wait(timeout=DEADLINE_S))
    if code:
        raise TourEnded(f"expected latticed to end with 0, found {code}")


def play_on(story: Story) -> None:
    """Grants, the other types, and what is refused or already so."""
    print("\n# Capabilities of host risk are not granted until an operator names them.")
    story.type(f"latticectl install {WEB}", "not granted (host risk): http:egress")
    story.type(f"latticectl caps grant {WEB} cap=http:egress host=example.org:443", "granted")
    story.expect(WEB, status="installed", granted=["http:egress", "kv:read", "kv:write"])
    story.type(f"latticectl caps list {WEB}", "example.org:443")
    print("\n# A worker is a template that answers HTTP requests on its route; here it is rendered without HTTP.")
    story.type(f"latticectl kv set default message Ada && latticectl install {WORKER}", "stored")
    story.type(f"latticectl activate {WORKER}", "armed")
    story.type(f"""latticectl invoke {WORKER} render '{{"path": "/sample.hello-worker/x"}}'""", "hello", "Ada")
    print("\n# A wasm plugin can do nothing but the host calls that it declared.")
    story.type(f"latticectl install {WASM} && latticectl activate {WASM}", "armed")
    story.type(f"latticectl invoke {WASM} greet")
    print("\n# Disabled stays disabled; already so is fine; a name that nobody knows is not.")
    story.type(f"latticectl disable {HELLO}")
    story.expect(HELLO, status="disabled", available=True, state="stopped")
    story.type(f"latticectl disable {HELLO}", "already disabled")
    story.type("latticectl install sample.nobody", exits=4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "demo"))
    what = parser.parse_args().what
    if not (BIN / "latticed").exists():
        parser.error(f"expected latticed beside {sys.executable}, found none: use make {what}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that the daemon is ended on the way out
    try:
        run() if what == "run" else demo()
    except KeyboardInterrupt:
        return 130
    except (TourEnded, subprocess.TimeoutExpired, OSError) as ended:
        print(f"\nnot as told: {ended}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
