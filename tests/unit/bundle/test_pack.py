from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from latticed.bundle import pack
from latticed.model import accepted
from latticed.model.errors import Problem

ENV = "/usr/bin/env python3"


@pytest.fixture
def source(tmp_path):
    """A tree of two modules, with what is left out beside them."""
    root = tmp_path / "src"
    for path, text in {
        "__main__.py": "import shop.cart\nprint(shop.cart.TOTAL)\n",
        "shop/__init__.py": "",
        "shop/cart.py": "TOTAL = 42\n",
        "shop/naïve.txt": "data",
        ".git/config": "x",
        "shop/__pycache__/cart.cpython-311.pyc": "x",
        "shop/old.pyc": "x",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_two_copies_of_one_tree_give_the_same_bytes(source, tmp_path):
    """Times, modes, order of creation and what is left out make no difference; content does."""
    artifact = pack.zipapp(pack.tree(source), interpreter=ENV)
    copy = tmp_path / "copy"
    for path in sorted(source.rglob("*.*"), reverse=True):
        if path.is_file() and ".git" not in path.parts and path.suffix != ".pyc":
            (copy / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(source))
            (copy / path.relative_to(source)).chmod(0o755)
            os.utime(copy / path.relative_to(source), (1, 1))
    assert pack.zipapp(pack.tree(copy), interpreter=ENV) == artifact
    (copy / "shop/cart.py").write_text("TOTAL = 43\n")
    assert pack.zipapp(pack.tree(copy), interpreter=ENV) != artifact


def test_artifact_is_a_program_of_python(source, tmp_path):
    """It runs, and a host sees its interpreter."""
    artifact = pack.zipapp(pack.tree(source), interpreter=ENV)
    assert accepted.interpreter_of(artifact[: accepted.HEAD_BYTES]) == ENV
    path = tmp_path / "artifact"
    path.write_bytes(artifact)
    assert subprocess.check_output([sys.executable, path]) == b"42\n"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["__main__.py", "shop/__init__.py", "shop/cart.py", "shop/naïve.txt"]


def test_main_names_the_function_to_call(source, tmp_path):
    (source / "__main__.py").unlink()
    (source / "shop/cart.py").write_text("def run():\n    print('called')\n")
    path = tmp_path / "artifact"
    path.write_bytes(pack.zipapp(pack.tree(source), interpreter=ENV, main="shop.cart:run"))
    assert subprocess.check_output([sys.executable, path]) == b"called\n"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"main": "shop.cart:run"}, "found both"),
        ({"main": "shop cart:run", "without": "__main__.py"}, "MODULE:FUNCTION"),
        ({"main": "shop.cart", "without": "__main__.py"}, "MODULE:FUNCTION"),
        ({"without": "__main__.py"}, "found neither"),
        ({"interpreter": "python3"}, "expected an interpreter"),
        ({"interpreter": "/usr/bin/python3\nimport os"}, "expected an interpreter"),
        ({"interpreter": "/" + "x" * 255}, "at most 254 bytes"),
    ],
)
def test_unusable_options_are_refused(source, given, found):
    files = pack.tree(source)
    files.pop(given.get("without"), None)
    with pytest.raises(Problem, match=found) as caught:
        pack.zipapp(files, interpreter=given.get("interpreter", ENV), main=given.get("main"))
    assert caught.value.code == "usage"


def test_what_is_no_plain_file_is_refused_without_being_opened(source, monkeypatch):
    """Links to files, directories and nothing, pipes; a pipe is not waited for."""
    for make in (
        lambda path: path.symlink_to("cart.py"),
        lambda path: path.symlink_to("/etc"),
        lambda path: path.symlink_to("nothing"),
        os.mkfifo,
    ):
        make(source / "shop/other")
        with pytest.raises(Problem, match="shop/other") as caught:
            pack.tree(source)
        assert caught.value.code == "not_regular"
        (source / "shop/other").unlink()
    link = source.parent / "link"
    link.symlink_to(source)
    for path, code in ((link, "io_error"), (source / "none", "not_found")):
        with pytest.raises(Problem) as caught:
            pack.tree(path)
        assert caught.value.code == code


@pytest.mark.parametrize("name", [b"caf\xe9.py", b"a\nb.py", "a\u2028b.py".encode()])
def test_names_that_cannot_be_shown_are_refused(source, name):
    with open(os.path.join(os.fsencode(source), name), "wb"):
        pass
    with pytest.raises(Problem) as caught:
        pack.tree(source)
    assert caught.value.code == "name_invalid"
    assert caught.value.reason.isprintable()


def test_too_many_files_bytes_and_levels_are_refused(source, monkeypatch):
    monkeypatch.setattr(pack, "MAX_ENTRIES", 3)
    with pytest.raises(Problem, match="at most 3 files"):
        pack.tree(source)
    monkeypatch.setattr(pack, "MAX_ENTRIES", 4)
    monkeypatch.setattr(pack, "MAX_BYTES", 1 << 20)
    (source / "shop/cart.py").write_bytes(b"#" * (1 << 20))
    with pytest.raises(Problem, match="at most 1 MiB"):
        pack.tree(source)
    (source / "shop/cart.py").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(Problem, match=r"shop/cart\.py: expected at most"):
        pack.tree(source)
    with pytest.raises(Problem, match="expected an artifact of at most 1 MiB"):
        pack.zipapp({"__main__.py": b"#" * (1 << 20)}, interpreter=ENV)
    (source / "shop/cart.py").unlink()
    deep = source.joinpath(*["d"] * (pack.MAX_DEPTH + 1))
    deep.mkdir(parents=True)
    with pytest.raises(Problem, match="32 directories"):
        pack.tree(source)
