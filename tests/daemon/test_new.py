"""latticectl new: each project is made, built, tested, signed, verified and run, with the tools that it names."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from latticed.bundle import pack
from latticed.ctl import scaffold
from tests.house import long, processes

pytestmark = pytest.mark.daemon

PROJECTS = [f"{kind}-{lang}" if lang else kind for kind, lang in scaffold.TEMPLATES]
# Zig takes long: one of its two projects is built each time.
SAMPLED = [*(one for one in PROJECTS if one != "system-zig"), *long.only("system-zig")]
BUILD_S = 150
NO_RUST = "no Rust compiler is here"


@dataclass
class Author:
    """Who writes a plugin, without rights; commands are run in `home`."""

    home: Path
    user: processes.User | None

    def run(
        self, *words: str, cwd: str = ".", check: bool = True, as_user: bool = True
    ) -> subprocess.CompletedProcess[str]:
        ids = (
            {}
            if self.user is None or not as_user
            else {"user": self.user.uid, "group": self.user.gid, "extra_groups": []}
        )
        python = processes.reachable_python() if self.user else sys.executable
        environ = {
            "PATH": os.defpath,
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "PYTHON": python,
            "LATTICECTL": f"{python} -P -m latticed.ctl.main",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [python, "-P", "-m", "latticed.ctl.main", *words[1:]] if words[0] == "latticectl" else words
        done = subprocess.run(
            command,
            cwd=self.home / cwd,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_S,
            **ids,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


def _sysroot() -> Path | None:
    """Where a Rust compiler is, if there is one."""
    found = shutil.which("rustc") or shutil.which("rustc", path=str(Path.home() / ".cargo/bin"))
    if found is None:
        return None
    return Path(subprocess.check_output([found, "--print", "sysroot"], text=True).strip())


RUST = _sysroot()
if RUST is None or not (RUST / "lib/rustlib/wasm32-unknown-unknown").is_dir():
    SAMPLED.remove("wasm-rust")  # its types are checked below


@pytest.fixture(scope="module")
def author(tmp_path_factory) -> Iterator[Author]:
    """With a key, and a policy that trusts it."""
    user = processes.STRANGER if os.getuid() == 0 else None
    with processes.home_of(user, tmp_path_factory.mktemp("new")) as home:
        made = Author(home, user)
        (home / "tmp").mkdir(mode=0o700)
        if user is not None:
            os.chown(home / "tmp", user.uid, user.gid)
        made.run("latticectl", "key", "generate", "acme.key")
        public = made.run("latticectl", "key", "show", "acme.key").stdout.strip()
        made.run("latticectl", "trust", "add", "acme", public, "--trust", "trust.json")
        yield made


@pytest.mark.parametrize("project", SAMPLED)
def test_a_new_project_is_built_tested_signed_and_run(author, project):
    """As its README and what `new` prints say; Git would not take its keys and what was built."""
    kind, _, lang = project.partition("-")
    if lang == "rust" and RUST is None:
        pytest.skip(NO_RUST)
    name = f"acme.{project}"
    words = ("--lang", lang) if lang else ()
    told = author.run("latticectl", "new", kind, name, *words).stderr
    for step in ("make test", "latticectl run . ", "latticectl dev ."):
        assert f"\n  {step}" in told
    if lang == "rust":  # it may be root's own
        author.run("make", "artifact", f"RUSTC={RUST}/bin/rustc", cwd=name, as_user=False)
        if author.user is not None:
            os.chown(author.home / name / "artifact", author.user.uid, author.user.gid)
    done = author.run("make", "test", cwd=name)
    assert done.stderr.rstrip().endswith("OK"), done.stdout + done.stderr
    author.run("make", "sign", "KEY=../acme.key", "PUBLISHER=acme", cwd=name)
    verified = author.run("latticectl", "verify", "--trust", "trust.json", name)
    assert "verified" in verified.stdout
    ran = author.run("make", "-s", "run", cwd=name)
    assert ("You asked for" if kind == "worker" else '"hello": "world"') in ran.stdout
    assert list((author.home / "tmp").iterdir()) == []
    ignored = (author.home / name / ".gitignore").read_text().splitlines()
    assert {"/artifact", "*.key", "*.pem"} <= set(ignored)
    assert author.run("make", "-q", "artifact", cwd=name, check=False).returncode == 0, "it would be built again"


def test_rust_module_type_checks(tmp_path):
    """Built for this machine, where it has no host: the compilers of CI do not have the target of modules."""
    if RUST is None:
        pytest.skip(NO_RUST)
    source = Path(scaffold.__file__).with_name("templates") / "wasm-rust/plugin.rs"
    command = [
        RUST / "bin/rustc",
        "--edition",
        "2021",
        "--crate-type",
        "cdylib",
        "--emit",
        "metadata",
        "-D",
        "warnings",
    ]
    subprocess.run([*command, "--out-dir", str(tmp_path), str(source)], check=True, timeout=BUILD_S)


def test_wasm_project_is_a_bundle_before_anything_is_built(author):
    """Its artifact is what ziglang makes of the source, byte for byte."""
    pytest.importorskip("ziglang", reason="ziglang, which builds a sample, is not installed")
    author.run("latticectl", "new", "wasm", "acme.first")
    place = author.home / "acme.first"
    before = (place / "artifact").read_bytes()
    author.run("make", "clean", "artifact", cwd=place.name)
    assert (place / "artifact").read_bytes() == before


def test_python_project_is_packed_as_make_packs_it(author):
    author.run("latticectl", "new", "system", "acme.packed")
    place = author.home / "acme.packed"
    before = (place / "artifact").read_bytes()
    assert before == pack.zipapp(pack.tree(place / "src"), interpreter=pack.INTERPRETER)
    with zipfile.ZipFile(place / "artifact") as archive:
        assert archive.namelist() == ["__main__.py", "plugin.py"]
    assert json.loads((place / "manifest.json").read_text())["type"] == "system"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("worker", "acme.none", "--lang", "zig"), "a worker is a template and has no language"),
        (("wasm", "acme.none", "--lang", "python"), "expected a language of wasm (c, zig, rust), found python"),
        (("wasm", "acme.none", "--lang", "sh"), "write a system plugin in it: latticectl new system --lang sh"),
        (("system", "acme.none", "--lang", "cobol"), "invalid choice: 'cobol'"),
        (("system", "acme.none", "--name", "a\nb"), "without control or invisible characters"),
        (("system", "acme.none", "--name", ""), "expected `name`"),
        (("system", "acme.none", "--name", "x" * 81), "expected `name`"),
        (("system", "Acme.None"), "expected an id of 3 to 128"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(author, words, told):
    done = author.run("latticectl", "new", *words, check=False)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert not (author.home / words[1]).exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_name_that_exists_is_refused_and_nothing_is_overwritten(author, kind):
    place = author.home / f"acme.there-{kind}"
    if kind == "file":
        place.write_text("mine")
    elif kind == "directory":
        place.mkdir()
        (place / "Makefile").write_text("mine")
    else:
        place.symlink_to("elsewhere")
    done = author.run("latticectl", "new", "system", place.name, check=False)
    assert (done.returncode, "expected nothing at" in done.stderr) == (1, True)
    if kind == "link":
        assert os.readlink(place) == "elsewhere"
        assert not place.exists()
    else:
        assert (place if kind == "file" else place / "Makefile").read_text() == "mine"
    assert not [one for one in author.home.iterdir() if ".new." in one.name]


def test_names_are_words_and_no_templates(author):
    """What stands in a name, such as `@id@`, is put into files once; sources have the id, which does no harm."""
    odd = '@id@ */ """ $(shell touch /tmp/no) `x`'
    author.run("latticectl", "new", "system", "acme.odd", "--name", odd, "--lang", "c")
    place = author.home / "acme.odd"
    assert (place / "README.md").read_text().startswith(f"# {odd}\n")
    for path in (place / "plugin.c", place / "Makefile"):
        assert odd not in path.read_text()
    with contextlib.suppress(FileNotFoundError):
        (place / "artifact").unlink()
    author.run("make", "artifact", cwd="acme.odd")
