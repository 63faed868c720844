"""Packages of others in an artifact: real pip, wheels from a directory, no network."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from latticed.bundle import pack, requirements
from latticed.ctl import main
from latticed.model.errors import Problem

HASH = f"--hash=sha256:{'a' * 64}"


class Shelf:
    """A directory of wheels, which is all that pip sees."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()

    def wheel(self, name: str, files: dict[str, str], *, tag: str = "py3-none-any", needs: str = "") -> str:
        """Put a wheel of version 1.0 there; the line that pins it."""
        pure = tag.endswith("none-any")
        info = f"{name}-1.0.dist-info"
        needed = f"Requires-Dist: {needs}\n" if needs else ""
        whole = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needed}",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: {str(pure).lower()}\nTag: {tag}\n",
        }
        whole[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*whole, f"{info}/RECORD"])
        path = self.place / f"{name}-1.0-{tag}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for inner, text in whole.items():
                archive.writestr(inner, text)
        return self.line(name, path)

    def sdist(self, name: str, files: dict[str, str] | None = None) -> str:
        path = self.place / f"{name}-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for inner, text in (files or {"setup.py": "raise SystemExit('an sdist was run')\n"}).items():
                entry = tarfile.TarInfo(f"{name}-1.0/{inner}")
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        return self.line(name, path)

    @staticmethod
    def line(name: str, path: Path) -> str:
        return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Shelf(tmp_path / "shelf")


def _file(tmp_path, *lines):
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def _refused(path):
    with pytest.raises(Problem) as caught:
        requirements.packed(path)
    assert caught.value.code == requirements.CODE
    assert caught.value.hint
    return caught.value.reason


def test_packages_are_packed_and_imported_by_an_isolated_python(shelf, tmp_path, capsys):
    """Pinned with their dependencies; what a wheel has beside modules is left out. The same bytes each time."""
    words = shelf.wheel(
        "words",
        {"words/__init__.py": "from greet import HELLO\nALL = [HELLO]\n", "words-1.0.data/scripts/words": "#!python\n"},
        needs="greet>=1.0",
    )
    greet = shelf.wheel("greet", {"greet.py": "HELLO = 'hello'\n", "greet-1.0.data/purelib/more/deep.py": "N = 7\n"})
    needed = _file(tmp_path, "# made by hand", words.replace(" --hash", " \\\n    --hash"), f"{greet}  # for words")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/__main__.py").write_text(
        "import importlib.metadata, words\nfrom more.deep import N\n"
        "print(words.ALL, N, importlib.metadata.version('greet'))\n"
    )
    bundle = tmp_path / "acme.demo"
    assert main.main(["new", "system", str(bundle)]) == 0
    packing = ["pack", "--requirements", str(needed), str(tmp_path / "src"), str(bundle)]
    assert main.main(packing) == 0
    assert "  greet-1.0-py3-none-any.whl, " in capsys.readouterr().out
    artifact = bundle / "artifact"
    done = subprocess.run([sys.executable, "-I", artifact], cwd="/", check=True, capture_output=True, text=True)
    assert done.stdout == "['hello'] 7 1.0\n"
    with zipfile.ZipFile(artifact) as archive:
        assert archive.namelist() == [
            *(
                "__main__.py",
                "greet-1.0.dist-info/METADATA",
                "greet-1.0.dist-info/WHEEL",
                "greet.py",
                "more/",
                "more/deep.py",
            ),
            *("words-1.0.dist-info/METADATA", "words-1.0.dist-info/WHEEL", "words/__init__.py"),
        ]
    before = artifact.read_bytes()
    artifact.write_bytes(b"")
    assert main.main(packing) == 0
    assert artifact.read_bytes() == before


def test_packages_that_cannot_be_packed_are_refused_by_name(shelf, tmp_path):
    """Compiled ones, those that have to be built first, changed ones, what others need and nobody pinned."""
    pure = shelf.wheel("pure", {"pure.py": ""}, needs="forgotten")
    compiled = shelf.wheel("fast", {"fast.so": "\x7fELF"}, tag=f"cp3{sys.version_info.minor}-none-linux_x86_64")
    hidden = shelf.wheel("sly", {"sly/_fast.so": "\x7fELF"})
    sdist = shelf.sdist("source")
    assert "fast-1.0-cp3" in (reason := _refused(_file(tmp_path, compiled)))
    assert reason.endswith("is not pure Python")
    assert _refused(_file(tmp_path, hidden)) == "sly-1.0-py3-none-any.whl is not pure Python"
    assert "there is no wheel of source==1.0" in _refused(_file(tmp_path, sdist))
    assert "forgotten" in _refused(_file(tmp_path, pure))
    assert "DO NOT MATCH THE HASHES" in _refused(_file(tmp_path, hidden.replace("sly", "pure")))


@pytest.mark.parametrize(
    "hidden",
    [
        # pip joins no line to a comment, though it ends in a backslash.
        b"# reviewed \\\n--no-binary=:all:\n",
        # pip reads a file in the encoding that its first lines name: this comment has a line end then.
        b"# coding: utf-7\n#+AAo---no-binary=:all:\n",
    ],
)
def test_options_that_only_pip_would_see_have_no_effect(shelf, tmp_path, hidden):
    """With this one it would build an sdist, and so run its code."""
    ran = tmp_path / "ran"
    backend = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    project = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    line = shelf.sdist("source", {"evil.py": backend, "pyproject.toml": project})
    path = tmp_path / "requirements.txt"
    path.write_bytes(hidden + line.encode() + b"\n")
    reason = _refused(path)
    assert not ran.exists()
    assert "there is no wheel of source==1.0" in reason or "found the option --no-binary" in reason


def test_pip_is_not_taken_from_where_it_is_run(shelf, tmp_path, monkeypatch):
    """A directory that was fetched may have a pip.py, or a module that pip imports."""
    line = shelf.wheel("good", {"good.py": ""})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("raise SystemExit('another pip')\n")
    assert set(requirements.packed(_file(tmp_path, line)).tree) >= {"good.py"}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/etc/a.py", "has a file /etc/a.py"),
        ("a-1.data/purelib//a.py", "has a file a-1.data/purelib//a.py"),
        ("./a.py", "has a file ./a.py"),
        ("a-1.data/purelib/latticed/sdk/__init__.py", "would hide latticed.sdk of the host"),
        ("latticed/sdk/__init__.py", "would hide latticed.sdk of the host"),
    ],
)
def test_files_of_a_wheel_that_have_no_place_are_refused(path, told):
    with pytest.raises(Problem, match=re.escape(told)):
        list(requirements._contents("a-1-py3-none-any.whl", _zipped(path, b"1")))


def test_wheel_that_says_it_is_smaller_than_it_is_is_not_unpacked_whole():
    true, said = (size.to_bytes(4, "little") for size in (64 << 20, 10))
    lying = _zipped("a.py", bytes(64 << 20)).replace(true, said)
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match="is no wheel"):
            list(requirements._contents("a-1-py3-none-any.whl", lying))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_wheel_in_another_compression_is_refused():
    """Also one that is torn: the exception of lzma is of no class that zipfile's are."""
    torn = _zipped("a.py", bytes(range(256)) * 9, zipfile.ZIP_LZMA).replace(bytes(range(64, 72)), bytes(8))
    with pytest.raises(Problem, match="compressed in a way"):
        list(requirements._contents("a-1-py3-none-any.whl", torn))


def _zipped(path, data, compression=zipfile.ZIP_DEFLATED):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        archive.writestr(path, data)
    return held.getvalue()


def test_two_packages_with_one_file_are_refused(shelf, tmp_path):
    first, second = (shelf.wheel(name, {"both/__init__.py": f"N = '{name}'\n"}) for name in ("first", "second"))
    reason = _refused(_file(tmp_path, first, second))
    assert reason.endswith("both have both/__init__.py")
    assert {"first-1.0-py3-none-any.whl", "second-1.0-py3-none-any.whl"} <= set(reason.split())


def test_a_module_of_the_plugin_is_not_hidden_by_a_package():
    theirs = requirements.Packed(wheels=(), tree={"plugin.py": b"", "more.py": b""})
    assert set(requirements.joined({"__main__.py": b""}, theirs)) == {"__main__.py", "plugin.py", "more.py"}
    with pytest.raises(Problem, match=r"both have plugin\.py"):
        requirements.joined({"plugin.py": b""}, theirs)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("requests", "expected NAME==VERSION"),
        ("requests>=2", "expected NAME==VERSION"),
        (f"requests>=2 {HASH}", "expected NAME==VERSION"),
        ("requests==2.32.3", "requests 2.32.3 has no hash"),
        ("requests==2.32.3 --hash=md5:abc", "requests 2.32.3 has no hash"),
        (f"requests==2.32.3 {HASH} --global-option=x", "expected hashes, found --global-option=x"),
        ("-e .", "found the option -e ."),
        ("-r other.txt", "found the option -r other.txt"),
        ("--index-url https://example.org", "found the option --index-url"),
        (f"https://example.org/a.whl {HASH}", "expected NAME==VERSION"),
        (f"./a.whl {HASH}", "expected NAME==VERSION"),
        (f"a @ https://example.org/a.whl {HASH}", "expected NAME==VERSION"),
        (f"a[${{HOME}}]==1.0 {HASH}", "expected NAME==VERSION"),
        (f"git+https://example.org/a {HASH}", "expected NAME==VERSION"),
        (f"latticed_SDK==0.1.0 {HASH}", "each host brings its own latticed.sdk"),
        (f"latticed==0.1.0 {HASH}", "each host brings its own latticed.sdk"),
        ("\x1b[31mred", "expected NAME==VERSION"),
    ],
)
def test_lines_without_pin_or_hash_are_refused_by_name(tmp_path, line, told):
    """Before pip is asked."""
    reason = _refused(_file(tmp_path, f"good==1.0 {HASH}", line))
    assert told in reason
    assert "\x1b" not in reason


@pytest.mark.parametrize(
    "line",
    [
        f"requests==2.32.3 {HASH}",
        f"requests[socks]==2.32.3 {HASH} {HASH}",
        f'typing-extensions==4.12.2 ; python_version < "3.11" {HASH}',
        f"zope.interface==6.0.post1 \\\n    {HASH} \\\n    {HASH}\n    # via something",
        "# nothing but a comment",
        "",
    ],
)
def test_lines_as_tools_write_them_are_taken(line):
    requirements.check(line)


def test_what_is_no_file_and_what_is_no_wheel_is_told(shelf, tmp_path):
    with pytest.raises(Problem, match="expected a requirements file"):
        requirements.packed(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in _refused(tmp_path / "bytes.txt")
    (tmp_path / "long.txt").write_bytes(b"#" * (requirements.MAX_FILE_BYTES + 1))
    assert "at most 1 MiB" in _refused(tmp_path / "long.txt")
    line = shelf.wheel("up", {"../../up.py": ""})
    with pytest.raises(Problem, match=r"up-1\.0-py3-none-any\.whl"):
        list(requirements._contents("up-1.0-py3-none-any.whl", (shelf.place / "up-1.0-py3-none-any.whl").read_bytes()))
    assert line
    with pytest.raises(Problem, match="is no wheel"):
        list(requirements._contents("no-1.0-py3-none-any.whl", b"PK\x03\x04 no"))
    torn = io.BytesIO()
    with zipfile.ZipFile(torn, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", "x = 1\n" * 500)
    whole = torn.getvalue()
    with pytest.raises(Problem, match="is no wheel"):
        list(requirements._contents("a-1.0-py3-none-any.whl", whole[:34] + b"\xff" * 12 + whole[46:]))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.py", bytes(pack.MAX_BYTES + 1))
    with pytest.raises(Problem, match="more than 64 MiB"):
        list(requirements._contents("big-1.0-py3-none-any.whl", bomb.getvalue()))
