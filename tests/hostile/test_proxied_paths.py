"""Paths that a proxied service could read as another one: without login only the public paths reach it."""

from __future__ import annotations

import itertools
import posixpath
import unicodedata
from urllib.parse import unquote

import pytest

from tests.house import backends, routed
from tests.house.routed import ID

UP = [
    "..",
    ".",
    "%2e%2e",
    "%2E.",
    ".%2e",
    "%252e%252e",
    "%25252e%25252e",
    "..;",
    "..;a=b",
    "..%3b",
    "%2e%2e%3ba",
    "..%00",
    "..%0a",
    "%c0%ae%c0%ae",
    "%e0%80%ae%e0%80%ae",
    "%u002e%u002e",
    "%EF%BC%8E%EF%BC%8E",
    "..%20",
    " ..",
    "...",
    "..?",
    "..#",
    "",
    "~",
]
DIVIDERS = [
    "/",
    "//",
    "%2f",
    "%2F",
    "%252f",
    "\\",
    "%5c",
    "%255c",
    "%c0%af",
    "%e0%80%af",
    "%ef%bc%8f",
    ";/",
    "/;/",
    "/./",
]
STARTS = ["/download/", "/download/a/", "/download/a/b/", "/download"]
ENDS = ["api", "api/utils/env", "API/utils/env", "%61pi/utils/env"]


def readings(path):
    """What programs make of a path: decoded up to three times, overlong forms too, without parameters, normalised."""
    todo, found = [path], set()
    for _ in range(3):
        todo += [unquote(one.replace("%c0%ae", ".").replace("%c0%af", "/"), errors="replace") for one in todo]
    for one in {*todo, *(unicodedata.normalize("NFKC", one) for one in todo)}:
        for read in (one, one.replace("\\", "/"), one.partition("\0")[0], one.partition("?")[0].partition("#")[0]):
            plain = "/".join(segment.partition(";")[0].strip() for segment in read.split("/"))
            found |= {read, plain, posixpath.normpath(read), posixpath.normpath(plain)}
    return {"/" + one.lower().lstrip("/") for one in found}


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


async def test_no_reading_of_a_path_without_login_leaves_the_public_ones(tmp_path, backend):
    """At the root of the origin, where nothing but the pattern is in front of the service."""
    async with routed.opened(tmp_path) as world:
        world.plugins.granted_prefixes = {ID: frozenset({"/"})}
        await world.serve(backend, path="/", public=["/download/*/*"])
        assert (await world.get("/download/a/b")).status == 200
        backend.seen.clear()
        reached = 0
        for start, up, divider, end in itertools.product(STARTS, UP, DIVIDERS, ENDS):
            target = f"{start}{up}{divider}{end}"
            await world.get(target)
            reached += len(backend.seen)
            for seen in backend.paths:
                for one in readings(seen.partition("?")[0]):
                    parts = one.strip("/").split("/")
                    assert len(parts) == 3, (target, seen, one)
                    assert parts[0] == "download", (target, seen, one)
            backend.seen.clear()
        assert reached, "some of these paths are public"
