"""Descriptors of ours that a child is given, at the numbers that it knows them by."""

from __future__ import annotations

import asyncio
import os

import pytest

from latticed.processes import child
from latticed.sandbox import artifact
from tests.house import children, processes

LEVELS = pytest.mark.parametrize("level", ["open", "filtered", "isolated"])


@pytest.fixture
def given():
    """Descriptors for the child by its numbers, a sealed memfd and the write end of a pipe; and the read end."""
    fd = artifact.memory()
    os.write(fd, b"from us\n")
    artifact.close_for_good(fd)
    os.lseek(fd, 0, os.SEEK_SET)
    read, write = os.pipe()
    yield {3: fd, 9: write}, read
    for one in (fd, read, write):
        os.close(one)


@LEVELS
async def test_child_has_only_the_given_descriptors_open(given, level):
    """A memfd that it reads and a pipe that it writes."""
    numbers, ours = given
    script = "read x <&3; echo back: $x >&9; for n in 4 5 6 7 8; do (: <&$n) 2>/dev/null && echo open $n; done; exit 0"
    script = script if level != "filtered" else "read x <&3; echo back: $x >&9"
    said = children.Heard()
    features = ("threads",) if level == "filtered" else ("threads", "processes", "workdir")
    over = asyncio.Event()
    async with asyncio.timeout(processes.PATIENCE_S):
        with children.spec_of(script, level=level, features=features, given=numbers) as spec:
            started = await child.spawn(spec, on_exit=lambda _: over.set(), stdout=said, stderr=children.Heard())
        await over.wait()
    assert started.exit is not None
    assert started.exit.status == 0
    assert os.read(ours, 100) == b"back: from us\n"
    assert said.data == b""
    assert set(started.inputs) == {0}


async def test_reserved_or_taken_descriptor_number_is_refused(given):
    """Standard streams, those of the stub, and one that the child has already."""
    fd = given[0][3]
    for numbers, descriptors in (({2: fd}, ()), ({10: fd}, ()), ({3: fd}, (3,))):
        with (
            pytest.raises(ValueError, match="each once"),
            children.spec_of("", given=numbers, descriptors=descriptors),
        ):
            pass
