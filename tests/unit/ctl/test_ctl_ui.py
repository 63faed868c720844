"""latticectl ui: what it says where it cannot start."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = "import sys; sys.modules[sys.argv.pop(1)] = None; from latticed.ctl.main import main; sys.exit(main())"


@pytest.mark.parametrize("package", ["jinja2", "markupsafe"])
def test_without_its_extra_it_names_the_package(package: str):
    command = [sys.executable, "-P", "-c", SCRIPT, package, "ui"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "pip install 'latticed[ui]'" in ran.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "/run/latticed-ui/http.sock"], "--origin"),
        (["--origin", "http://plugins.example.org"], "https"),
        (["--listen", "127.0.0.1"], "127.0.0.1:PORT"),
    ],
)
def test_what_it_cannot_serve_is_a_usage_error(options: list[str], said: str):
    command = [sys.executable, "-P", "-m", "latticed.ctl.main", "ui", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, said in ran.stderr) == (2, True), ran
