"""The wheel latticed-sdk: found by Python, mypy and pyright in a fresh environment, also beside latticed."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from latticed.ctl import scaffold
from latticed.sdk import Plugin
from latticed.sdk.calls import VERSION
from tests.house import pages

BACKEND = pages.CHECKOUT / "packaging/sdk/wheel_of_sdk.py"
PYRIGHT = "1.1.414"
CACHE = Path(os.environ.get("LATTICED_ROOTS", "/var/cache/latticed-tests"))
WRONG = '''"""A plugin with four mistakes that types show."""

from latticed.sdk import Plugin


class Wrong(Plugin):
    def started(self) -> None:
        self.kv.put("count", 1)
        self.notify.send("full", severity="loud")
        self.node.facts()["hostname"].upper()
        print(self.task.submit("true")["identity"])
'''


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheel_of_sdk", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheels(backend, tmp_path_factory) -> dict[str, Path]:
    """latticed-sdk as its backend builds it, and latticed with what its wheel has, which needs no index to be built."""
    place = tmp_path_factory.mktemp("wheels")
    sdk = place / backend.build_wheel(str(place))
    top = Path(scaffold.__file__).parents[1]
    files = {
        f"latticed/{path.relative_to(top).as_posix()}": path.read_bytes()
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    whole = place / backend.write_wheel(
        place, name="latticed", version=backend.version(), summary="the daemon", python=">=3.11", files=files
    )
    return {"latticed-sdk": sdk, "latticed": whole}


class Environment:
    """A virtual environment outside of the checkout."""

    def __init__(self, place: Path) -> None:
        self.python = place / "bin/python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)

    def pip(self, *words: str | Path) -> None:
        quiet = ["-q", "--disable-pip-version-check", "--python", self.python]
        subprocess.run([sys.executable, "-m", "pip", *quiet, *words], check=True, capture_output=True)

    def install(self, *found: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", *found)

    def sees(self) -> tuple[str, bool]:
        """The directory that `latticed.sdk` comes from, below site-packages, and whether the daemon is there."""
        script = (
            "import importlib.util, latticed.sdk; print(latticed.sdk.__file__);"
            "print(importlib.util.find_spec('latticed.daemon') is not None)"
        )
        done = subprocess.run([self.python, "-c", script], check=True, capture_output=True, text=True, cwd="/")
        path, daemon = done.stdout.splitlines()
        return path.partition("site-packages/")[2].rpartition("latticed/sdk/")[0], daemon == "True"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, wheels):
    """With the SDK alone, and a project of `latticectl new` beside it."""
    place = tmp_path_factory.mktemp("fresh")
    environment = Environment(place / "venv")
    environment.install(wheels["latticed-sdk"])
    plain = scaffold.manifest("system", "python", plugin_id="acme.demo", name="Demo", publisher=None)
    files = {**scaffold.project("system", "python", plain), "manifest.json": json.dumps(plain).encode()}
    for path, data in files.items():
        (place / "acme.demo" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "acme.demo" / path).write_bytes(data)
    (place / "wrong.py").write_text(WRONG)
    return environment, place


def test_wheel_has_the_sdk_alone_and_is_the_same_each_time(backend, wheels, tmp_path):
    again = tmp_path / backend.build_wheel(str(tmp_path))
    assert again.read_bytes() == wheels["latticed-sdk"].read_bytes()
    done = subprocess.run([sys.executable, "-m", "zipfile", "-l", again], check=True, capture_output=True, text=True)
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert {"latticed_sdk_only/latticed/sdk/py.typed", "latticed-sdk.pth"} <= set(names)
    assert not [one for one in names if one.startswith("latticed/")]
    modules = {path.name for path in (Path(scaffold.__file__).parents[1] / "sdk").glob("*.py")}
    assert {Path(one).name for one in names if one.startswith("latticed_sdk_only/")} == modules | {"py.typed"}


def test_a_method_of_a_later_sdk_says_which_one_the_host_has(backend):
    """A plugin runs on its host's SDK."""
    with pytest.raises(AttributeError, match=rf"Kv has no swap in latticed\.sdk {backend.version()}.*requires_host"):
        Plugin().kv.swap("a", "b")


def test_builds_as_a_package_without_an_index(tmp_path):
    """By any front end of PEP 517: it requires nothing to be built."""
    build = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", tmp_path, BACKEND.parent], check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"latticed_sdk-{VERSION}-py3-none-any.whl"]


def test_tests_of_a_project_pass_with_the_wheel_alone(fresh):
    environment, place = fresh
    command = [environment.python, "-m", "unittest", "discover", "-s", "tests"]
    subprocess.run(command, cwd=place / "acme.demo", check=True, capture_output=True, timeout=60)


def test_mypy_finds_the_types_of_the_sdk(fresh):
    """A new project is strictly typed, and mistakes in calls are found."""
    environment, place = fresh
    strict = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--python-executable", environment.python]
    env = {**os.environ, "MYPYPATH": "src"}
    sources = ["src/plugin.py", "src/__main__.py", "tests/test_plugin.py"]
    done = subprocess.run(
        [*strict, *sources], cwd=place / "acme.demo", env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*strict, "wrong.py"], cwd=place, capture_output=True, text=True, check=False)
    for line, word in ((8, "arg-type"), (9, "arg-type"), (10, "union-attr"), (11, "typeddict-item")):
        assert any(found.startswith(f"wrong.py:{line}:") and word in found for found in done.stdout.splitlines()), (
            done.stdout
        )


@pytest.fixture(scope="module")
def pyright() -> Path:
    """npm's package, fetched once for all runs on this machine."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("pyright is not here: it needs node, and npm to be fetched")
    place = CACHE / f"pyright-{PYRIGHT}"
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        lock = (CACHE / "pyright.lock").open("w")
    except OSError:
        pytest.skip("pyright is not here: it needs node, and npm to be fetched")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "node_modules/pyright/index.js").exists():
            fetch = ["npm", "install", "--prefix", place, "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run([*fetch, f"pyright@{PYRIGHT}"], capture_output=True, timeout=120, check=False)
            if done.returncode:
                shutil.rmtree(place, ignore_errors=True)
                pytest.skip("pyright is not here: it needs node, and npm to be fetched")
    return place / "node_modules/pyright/index.js"


def test_pyright_finds_the_types_of_the_sdk(fresh, pyright):
    environment, place = fresh
    for project, sources in (("acme.demo", ["src/plugin.py", "tests/test_plugin.py"]), (".", ["wrong.py"])):
        command = ["node", pyright, "--pythonpath", environment.python, "--outputjson", *sources]
        done = subprocess.run(command, cwd=place / project, capture_output=True, text=True, check=False, timeout=150)
        found = [
            (one["range"]["start"]["line"] + 1, one["rule"])
            for one in json.loads(done.stdout)["generalDiagnostics"]
            if one["severity"] == "error" and "reportMissingImports" not in one["rule"]
        ]
        mistakes = [(8, "reportArgumentType"), (9, "reportArgumentType"), (10, "reportOptionalMemberAccess")]
        assert found == ([] if project != "." else [*mistakes, (11, "reportTypedDictNotRequiredAccess")]) or (
            project == "." and found[:3] == mistakes and [line for line, _ in found[3:]] == [11]
        ), done.stdout


@pytest.mark.parametrize("order", [("latticed", "latticed-sdk"), ("latticed-sdk", "latticed")])
def test_both_in_one_environment_leave_each_other_alone(wheels, tmp_path, order):
    """latticed's own SDK is found while it is there; removing either leaves the other whole."""
    environment = Environment(tmp_path / "venv")
    for name in order:
        environment.install(wheels[name])
    assert environment.sees() == ("", True)
    environment.pip("uninstall", "-y", order[1])
    left = {"latticed": ("", True), "latticed-sdk": ("latticed_sdk_only/", False)}
    assert environment.sees() == left[order[0]]
