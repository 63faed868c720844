"""Published files as the target of a route: headers, ranges, paths, and who may have whose files served."""

from __future__ import annotations

import asyncio

import pytest

from latticed.ingress import ingress
from latticed.model.hostcall import Denial
from tests.house import ingresses, routed
from tests.house.routed import ID

OTHER = "acme.other"
HERE = f"/{ID}/"
STYLE = b"p { margin: 0 }\n"
FILE_POLICY = "sandbox; default-src 'none'"


@pytest.fixture
async def world(tmp_path):
    async with routed.opened(tmp_path) as found:
        await found.call(ID, "static.put", path="css/style.css", content=STYLE.decode())
        await found.call(ID, "static.put", path="top.txt", content="top")
        await found.call(OTHER, "static.put", path="theirs.txt", content="theirs")
        yield found


async def get(world, path, *fields, method="GET"):
    return await world.ask(method, path, *fields, table=world.pages)


async def test_published_files_are_served_below_the_route(world):
    """With type and ETag, `nosniff`, a sandbox, and a cache that asks again; HEAD has the length without bytes."""
    answer = await world.put(path=HERE, target="static")
    assert answer == {"ok": True, "path": HERE, "url": f"{world.pages.listener.url}{HERE}", "message": ""}
    found = await get(world, f"{HERE}css/style.css")
    tag = (await world.call(ID, "static.get", path="css/style.css"))["etag"]
    wanted = {
        "content-type": "text/css; charset=utf-8",
        "content-length": str(len(STYLE)),
        "etag": tag,
        "accept-ranges": "bytes",
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": FILE_POLICY,
    }
    assert (found.status, found.body) == (200, STYLE)
    assert {name: found.headers.get(name) for name in wanted} == wanted
    head = await get(world, f"{HERE}css/style.css", "Range: bytes=0-0", method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(STYLE)))
    refused = await get(world, f"{HERE}top.txt", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    listed = next(world.keeper.view(one) for one in world.keeper.every())
    assert (listed["target"], listed["state"], listed["files_of"]) == ("static", "served", ID)


@pytest.mark.parametrize(
    ("fields", "status", "body", "more"),
    [
        (["Range: bytes=0-2"], 206, STYLE[:3], {"content-range": f"bytes 0-2/{len(STYLE)}"}),
        (["Range: bytes=-3"], 206, STYLE[-3:], {}),
        (["Range: bytes=9999-"], 416, b"", {"content-range": f"bytes */{len(STYLE)}"}),
        (["Range: bytes=0-1,3-4"], 200, STYLE, {}),
        (["Range: bytes=0-2", 'If-Range: "old"'], 200, STYLE, {}),
        (["Range: bytes=0-2", "If-Range: TAG"], 206, STYLE[:3], {}),
        (["If-None-Match: TAG"], 304, b"", {"content-length": None, "etag": "TAG", "cache-control": "no-cache"}),
        (['If-None-Match: "old", W/TAG'], 304, b"", {}),
        (['If-None-Match: "old"'], 200, STYLE, {}),
    ],
)
async def test_ranges_and_conditions_of_a_request_are_met(world, fields, status, body, more):
    """As RFC 9110 has it (sections 13 and 14); an answer without content announces none."""
    await world.put(path=HERE, target="static", folder="css")
    tag = (await world.call(ID, "static.get", path="css/style.css"))["etag"]
    found = await get(world, f"{HERE}style.css", *(one.replace("TAG", tag) for one in fields))
    assert (found.status, found.body) == (status, body)
    expected = {name: value and value.replace("TAG", tag) for name, value in more.items()}
    assert {name: found.headers.get(name) for name in expected} == expected


async def test_route_to_a_folder_shows_nothing_else(world):
    """No encoding leads out of it, nor to other plugins' files."""
    await world.put(path=f"{HERE}style/", target="static", folder="css/")
    assert (await get(world, f"{HERE}style/style.css")).body == STYLE
    climbing = ("..", "%2e%2e", ".%2E", "%252e%252e", "..%2f", "..%5c", "%c0%ae%c0%ae", "%ef%bc%8e%ef%bc%8e")
    for way in (*climbing, "..;", "...", "css/..", "style.css/..", "x/..%00"):
        for end in ("top.txt", "css/style.css", f"../{OTHER}/theirs.txt", f"..%2f{OTHER}%2ftheirs.txt"):
            found = await get(world, f"{HERE}style/{way}/{end}")
            assert found.status in {400, 404}, (way, end, found)
    for path in ("top.txt", "", "style.css/", "/style.css", "style.css%00", ".put-00", "style.CSS%0d%0aX:y"):
        assert (await get(world, f"{HERE}style/{path}")).status in {400, 404}, path


async def test_html_is_served_only_while_it_is_allowed(world):
    """A path with a slash at its end is its `index.html`; the route's own without it is moved there."""
    await world.put(path=HERE, target="static")
    assert (await get(world, HERE)).status == 404
    world.files.limits = type(world.files.limits)(html=True)
    for path in ("index.html", "docs/index.html"):
        await world.call(ID, "static.put", path=path, content=f"<h1>{path}</h1>")
    for path, body in (("", b"<h1>index.html</h1>"), ("docs/", b"<h1>docs/index.html</h1>")):
        found = await get(world, HERE + path)
        assert (found.status, found.body) == (200, body)
        assert found.headers["content-security-policy"].startswith(f"{FILE_POLICY}; style-src 'self'")
        assert "script" not in found.headers["content-security-policy"]
    styled = "<style>p {}</style><style>b {}</style>"
    for content, hashes in ((styled, 2), (styled * 9, 0)):
        await world.call(ID, "static.put", path="styled.html", content=content)
        found = await get(world, f"{HERE}styled.html", "Range: bytes=0-3", "If-None-Match: *")
        assert (found.status, found.body.decode()) == (200, content)
        assert found.headers["content-security-policy"].count("'sha256-") == hashes
        assert found.headers["content-security-policy"].startswith(f"{FILE_POLICY}; style-src 'self'")
    moved = await get(world, HERE[:-1])
    assert (moved.status, moved.headers["location"]) == (301, HERE)
    world.files.limits = type(world.files.limits)()
    assert (await get(world, HERE)).status == 404


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"folder": "../x"}, "folder: expected parts"),
        ({"folder": "/css"}, "folder: expected parts"),
        ({"folder": "a%2fb"}, "folder: expected parts"),
        ({"plugin": "../acme.other"}, "plugin: expected the id of a plugin"),
        ({"plugin": OTHER}, "caps grant ID share=acme.other"),
        ({"plugin": "acme.nobody"}, "caps grant ID share=acme.nobody"),
        ({"template": "x"}, "template: goes with the target template, found static"),
        ({"login": "${secret:X}"}, "login: goes with the target service, found static"),
    ],
)
async def test_bad_parameters_of_route_to_files_are_refused(world, params, word):
    error = await world.refused(path=HERE, target="static", **params)
    assert error.code is Denial.BAD_PARAMS
    assert word in error.reason
    assert world.kept() == []


async def test_shared_files_are_served_while_both_may_act(world, tmp_path):
    """404 from the first request after the reader, the owner or the share is gone, before any recheck; and after a
    restart by the same rule.
    """
    world.plugins.shares.add((ID, OTHER))
    await world.put(path=HERE, target="static", plugin=OTHER)
    assert (await get(world, f"{HERE}theirs.txt")).body == b"theirs"
    assert (await get(world, f"{HERE}top.txt")).status == 404
    for lost in (lambda: world.plugins.live.discard(ID), lambda: world.plugins.live.discard(OTHER)):
        lost()
        assert (await get(world, f"{HERE}theirs.txt")).status == 404
        world.plugins.live |= {ID, OTHER}
        assert (await get(world, f"{HERE}theirs.txt")).status == 200
    world.plugins.shares.clear()
    assert (await get(world, f"{HERE}theirs.txt")).status == 404
    world.pass_s(1)
    (listed,) = (world.keeper.view(one) for one in world.keeper.every())
    assert listed["state"] == "resting"
    assert not world.pages.in_use


async def test_route_to_files_outlives_a_restart(tmp_path):
    plugins = routed.SimulatedPlugins(shares={(ID, OTHER)})
    async with routed.opened(tmp_path, plugins=plugins) as world:
        await world.call(OTHER, "static.put", path="in/theirs.txt", content="theirs")
        await world.put(path=HERE, target="static", plugin=OTHER, folder="in")
    async with routed.opened(tmp_path, plugins=plugins) as world:
        await world.pages.wait_for_listener(5)
        assert (await get(world, f"{HERE}theirs.txt")).body == b"theirs"


async def test_share_that_ends_while_a_file_is_read_is_not_answered(world, monkeypatch):
    """Neither to a visitor nor to the plugin."""
    world.plugins.shares.add((ID, OTHER))
    await world.put(path=HERE, target="static", plugin=OTHER)
    read = world.files._files.read

    def lost_meanwhile(owner, path):
        found = read(owner, path)
        world.plugins.shares.clear()
        return found

    monkeypatch.setattr(world.files._files, "read", lost_meanwhile)
    assert (await get(world, f"{HERE}theirs.txt")).status == 404
    world.plugins.shares.add((ID, OTHER))
    with pytest.raises(Exception, match="are not shared with this plugin"):
        await world.call(ID, "static.get", path="theirs.txt", plugin=OTHER)


async def test_clients_that_do_not_read_hold_bounded_memory(world, monkeypatch):
    """Beyond the limit large files are 503 until they are taken or cut; small ones go on."""
    monkeypatch.setattr(ingress, "UNSENT_BYTES", 1 << 20)
    world.files.limits = type(world.files.limits)(file_bytes=8 << 20)
    await world.call(ID, "static.put", path="big.bin", content_base64="AAAA" * (2 << 20))
    await world.put(path=HERE, target="static")
    port = world.port(world.pages)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(f"GET {HERE}big.bin HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
    busy = await get(world, f"{HERE}big.bin")
    assert (busy.status, b'"busy"' in busy.body) == (503, True)
    assert (await get(world, f"{HERE}top.txt")).status == 200
    await ingresses.gone(writer)
    found = await get(world, f"{HERE}big.bin")
    assert (found.status, len(found.body)) == (200, 6 << 20)
