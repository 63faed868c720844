"""docs/write/sdk.md: its Python is run, its transcripts are played against both sides, its table is that of the SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latticed
from latticed.host.call import HostError
from latticed.model.hostcall import Denial
from latticed.runners import jsonrpc, lines, stdio_json
from latticed.runners import message_memory as held
from tests.house import conversations, pages

PAGE = pages.CHECKOUT / "docs/write/sdk.md"
ENVIRONMENT = {"PATH": os.defpath, "PYTHONPATH": str(Path(latticed.__file__).parents[1])}


@pytest.fixture
def directory(tmp_path):
    """A directory with the page's Python files, named as in their fences."""
    blocks = [block for block in pages.blocks(PAGE) if block.language == "python"]
    for block in blocks:
        (tmp_path / block.words[1]).write_text(block.text)
    assert len(blocks) == 5
    return tmp_path


def test_python_of_each_page_is_run():
    """That of one page here, of others in `test_tutorial`, `test_reader_pages` and `test_one_more_renderer`."""
    found = {block.page for page in pages.PAGES for block in pages.blocks(page) if block.language == "python"}
    others = ("docs/start/tutorial.md", "README.md", "docs/write/README.md", "docs/internals/system-plugins.md")
    assert found == {PAGE, *(pages.CHECKOUT / page for page in others)}


def test_tests_in_the_pages_examples_pass(directory):
    """All tests in each of its files are run."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(directory),
        str(directory),
    ]
    done = subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = sum(path.read_text().count("def test_") for path in directory.glob("test_*.py"))
    assert re.search(rf"^{expected} passed", done.stdout, re.MULTILINE), done.stdout


def _conversation(name):
    """[(who, message)] of the transcript."""
    (block,) = pages.named("text", name)
    said = [line.split(None, 1) for line in block.text.splitlines()]
    assert {who for who, _ in said} == {"host", "plugin"}
    return said


def _answers(said):
    """The host's answers to the plugin's calls, in turn."""
    return [json.loads(line) for who, line in said if who == "host" and "method" not in json.loads(line)]


async def test_host_sends_the_lines_of_the_latticed_stdio_1_transcript():
    """It sends exactly these."""
    said = _conversation("latticed-stdio-1")
    answers = iter(_answers(said))

    async def serve(method, params):
        answer = next(answers)
        if "error" in answer:
            raise HostError(Denial(answer["error"]["data"]["code"]), answer["error"]["message"])
        return answer["result"]

    async with conversations.session() as talk:
        talk.serve, asked = serve, []
        for who, line in said:
            message = json.loads(line)
            if who == "plugin":
                talk.session.feed(line.encode() + b"\n")
                continue
            if "method" in message:
                asked.append(asyncio.create_task(talk.session.ask(message["method"], message["params"])))
            await talk.until_said(1)
            assert json.dumps(talk.said.pop(0), separators=(",", ":")) == line
        assert talk.broken == []
        results = [json.loads(line)["result"] for who, line in said if who == "plugin" and "result" in json.loads(line)]
        assert await asyncio.gather(*asked) == results


def test_plugin_sends_the_lines_of_the_latticed_stdio_1_transcript(directory):
    """It sends exactly these; the plugin is that of the page."""
    said = _conversation("latticed-stdio-1")
    done = subprocess.run(
        [sys.executable, "hello.py"],
        cwd=directory,
        env=ENVIRONMENT,
        input="".join(line + "\n" for who, line in said if who == "host"),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout.splitlines() == [line for who, line in said if who == "plugin"]
    assert (done.returncode, done.stderr) == (0, "")


async def test_host_sends_the_lines_of_the_stdio_json_v1_transcript():
    """They are equal byte by byte; the last line of the plugin is the reply."""
    (_, request), *said = _conversation("stdio-json-v1")
    plain = json.loads(request)
    assert stdio_json.request(plain["action"], plain["payload"]).decode() == request + "\n"
    answers = iter(_answers(said))

    async def serve(method, params):
        return next(answers)["host_response"]["result"]

    async with conversations.invocation() as call:
        call.serve = serve
        for who, line in said:
            if who == "plugin":
                call.invocation.feed(line.encode() + b"\n")
            else:
                await call.until_said(1)
                assert json.dumps(call.said.pop(0), separators=(",", ":")) == line
        assert await call.invocation.outcome == json.loads(said[-1][1])


def test_plugin_sends_the_lines_of_the_stdio_json_v1_transcript(directory):
    (_, request), *said = _conversation("stdio-json-v1")
    reading, writing = os.pipe()
    os.write(writing, "".join(line + "\n" for who, line in said if who == "host").encode())
    os.close(writing)
    try:
        done = subprocess.run(
            [sys.executable, "hello.py"],
            cwd=directory,
            env={**ENVIRONMENT, "LATTICE_HOST_RESPONSE_FD": str(reading)},
            pass_fds=[reading],
            input=request + "\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    finally:
        os.close(reading)
    assert done.stdout.splitlines() == [line for who, line in said if who == "plugin"]
    assert (done.returncode, done.stderr) == (0, "")


def test_protocol_limits_on_the_page_equal_the_hosts():
    text = " ".join(pages.prose(PAGE).split())
    assert jsonrpc.MAX_LINE_BYTES == 1 << 20
    assert "a line of more than 1 MiB (`message_too_large`)" in text
    assert f"more than {lines.MAX_DEPTH} levels of nesting" in text
    at_once = f"beyond {jsonrpc.MAX_IN_FLIGHT}, or {held.OF_ONE_BYTES >> 20} MiB of them as decoded"
    assert f"{at_once}, the host reads no further" in text
    assert f"at most {jsonrpc.METHOD_CHARACTERS} characters" in text
    assert (
        jsonrpc.METHOD_CHARACTERS == jsonrpc.ID_CHARACTERS == stdio_json.METHOD_CHARACTERS == stdio_json.ID_CHARACTERS
    )
