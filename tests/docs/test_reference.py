"""docs/reference and docs/troubleshooting.md are what the code says, and name nothing else."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys

import pytest

from latticed.ctl import codes, completion, main
from tests.house import pages

GENERATE = [sys.executable, "-P", "-m", "generate"]


def _generate(*arguments, docs=pages.CHECKOUT / "docs"):
    path = os.pathsep.join([str(docs), str(pages.CHECKOUT)])
    return subprocess.run(
        [*GENERATE, *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_pages_are_what_the_code_says():
    """Every code, setting, verb, host call, event and metric that exists is there, and no other."""
    done = _generate("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"run make reference\n{done.stdout}{done.stderr}"


def _help():
    """(words of the command, parser) of each verb and each of its actions."""
    for verb, parser in completion.whole_parser().actions():
        yield f"latticectl {verb}", parser
        yield from ((f"latticectl {verb} {action}", below) for action, below in parser.actions())


@pytest.mark.parametrize(("command", "parser"), _help(), ids=lambda one: one if isinstance(one, str) else "")
def test_help_has_a_sentence_an_example_and_words_for_each_argument(command, parser):
    assert parser.description
    examples = (parser.epilog or "").splitlines()[1:]
    assert any(line.strip().startswith(command) for line in examples), "no example"
    silent = [one.dest for one in parser._actions if not one.help and not isinstance(one, argparse._SubParsersAction)]
    assert silent == []


def _commands():
    for symptom in codes.symptoms():
        yield symptom.command
        yield from (text.command for text in symptom.codes.values())


@pytest.mark.parametrize("command", sorted({one for one in _commands() if one.startswith("latticectl")}))
def test_commands_that_codes_name_are_ones_that_latticectl_takes(command):
    words = shlex.split(re.sub(r"\{\w+\}", "acme.demo", command))
    if "--help" not in words:
        main.verb_parser(words[1], main.load(words[1])).parse_args(words[2:])
