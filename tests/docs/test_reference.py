"""docs/reference and docs/troubleshooting.md are what the code says, and name nothing else."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys

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


def _named(page, pattern):
    return re.findall(pattern, (pages.CHECKOUT / "docs/reference" / page).read_text(encoding="utf-8"), re.MULTILINE)


def test_written_pages_have_no_tables_of_what_is_generated():
    """They would differ from the code one day. Codes may stand where a page says what is particular there."""
    told = {
        *(key.replace("-", ".", 1) for key in _named("settings.md", r'id="setting-([a-z_]+-[a-z_]+)"')),
        *_named("host-calls.md", r"^### ([a-z]+\.[a-z_]+)$"),
        *_named("manifest.md", r'id="cap-[^"]+"></a>`([^`]+)`'),
        *_named("metrics.md", r"</a>`([a-z_]+)`"),
        *_named("http-api.md", r"^### (?:GET|PUT|POST|DELETE) (\S+)$"),
        *_named("events.md", r'id="(?:log|notice)-[^"]+"></a>`([^`]+)`'),
    }
    assert {"limits.bundles", "kv.get", "kv:read", "latticed_healthy", "/api/plugins", "daemon_ready"} <= told
    generated = {pages.CHECKOUT / "docs/troubleshooting.md", *(pages.CHECKOUT / "docs/reference").glob("*.md")}
    for page in set(pages.PAGES) - (generated - {pages.CHECKOUT / "docs/reference/api.md"}):
        cells = re.findall(r"^\|(?: [A-Z]+ \|)? `([^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(cells) & told == set(), page.name


def _help():
    """(words of the command, parser) of each verb and each of its actions."""
    for verb, parser in completion.whole_parser().verbs():
        yield f"latticectl {verb}", parser
        yield from ((f"latticectl {verb} {action}", below) for action, below in parser.verbs())


def test_help_of_each_verb_has_a_sentence_an_example_and_words_for_each_argument():
    for command, parser in _help():
        assert parser.description, command
        assert any(line.strip().startswith(command) for line in (parser.epilog or "").splitlines()), command
        for one in parser._actions:
            assert one.help or isinstance(one, argparse._SubParsersAction), f"{command}: {one.dest}"


def test_each_code_says_what_it_means_and_besides_why():
    for symptom in codes.symptoms():
        for name, text in symptom.codes.items():
            assert len({text.means, text.why, text.command, ""}) == 4, name


def test_commands_that_codes_name_are_ones_that_latticectl_takes():
    for symptom in codes.symptoms():
        for command in (symptom.command, *(text.command for text in symptom.codes.values())):
            words = shlex.split(re.sub(r"\{\w+\}", "acme.demo", command), comments=True)
            if words[0] == "latticectl" and "--help" not in words:
                main.verb_parser(words[1], main.load(words[1])).parse_args(words[2:])
