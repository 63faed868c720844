"""Bundles from a real https server: whole, resumed, broken off, of another content, without end, by way of the link."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl

import pytest
import trustme
from aiohttp import web

from latticed.fleet import chunks, https_source, messages
from latticed.fleet.engine import CHUNK_BYTES
from latticed.fleet.spool import NotFetched, Spool
from tests.house.links import linked
from tests.house.nats_servers import until

WAIT_S = 60
DATA = bytes(range(256)) * 4_000
SHA256 = hashlib.sha256(DATA).hexdigest()
AUTHORITY = trustme.CA()


@pytest.fixture
def tls():
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@pytest.fixture
def spool(directory):
    return Spool(directory, most_bytes=8 << 20, bundle_bytes=2 << 20)


@contextlib.asynccontextmanager
async def serving(handler):
    """The URL of a server that answers with `handler`."""
    app = web.Application()
    app.router.add_get("/bundle", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://localhost:{runner.addresses[0][1]}/bundle"
    finally:
        await runner.cleanup()


def ranged(seen, data=DATA):
    async def answer(request):
        seen.append(request.headers.get("Range"))
        start = request.http_range.start or 0
        if not start:
            return web.Response(body=data)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:], headers=headers)

    return answer


async def test_whole_bundle_arrives_and_a_part_is_gone_on_with(spool, directory, tls):
    seen = []
    async with asyncio.timeout(WAIT_S), serving(ranged(seen)) as url:
        await https_source.fetch(url, spool, SHA256, tls=tls)
        assert (directory / f"{SHA256}.tar").read_bytes() == DATA
        spool.forget(SHA256)
        (directory / f"{SHA256}.part").write_bytes(DATA[: 2 * CHUNK_BYTES + 5])
        await https_source.fetch(url, spool, SHA256, tls=tls)
    assert (directory / f"{SHA256}.tar").read_bytes() == DATA
    assert seen == [None, f"bytes={2 * CHUNK_BYTES}-"]


async def test_server_that_knows_no_ranges_gives_the_whole_again(spool, directory, tls):
    async def whole(_):
        return web.Response(body=DATA)

    (directory / f"{SHA256}.part").write_bytes(DATA[:CHUNK_BYTES])
    async with asyncio.timeout(WAIT_S), serving(whole) as url:
        await https_source.fetch(url, spool, SHA256, tls=tls)
    assert (directory / f"{SHA256}.tar").read_bytes() == DATA


async def test_answer_that_breaks_off_is_kept_as_far_as_it_came(spool, directory, tls):
    async def half(request):
        answer = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
        await answer.prepare(request)
        await answer.write(DATA[: 3 * CHUNK_BYTES])
        request.transport.abort()
        return answer

    async with asyncio.timeout(WAIT_S), serving(half) as url:
        with pytest.raises(NotFetched):
            await https_source.fetch(url, spool, SHA256, tls=tls)
    assert DATA.startswith((directory / f"{SHA256}.part").read_bytes())
    async with asyncio.timeout(WAIT_S), serving(ranged([])) as url:
        await https_source.fetch(url, spool, SHA256, tls=tls)
    assert (directory / f"{SHA256}.tar").read_bytes() == DATA


async def endless(request):
    answer = web.StreamResponse()
    await answer.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await answer.write(bytes(CHUNK_BYTES))
    return answer


async def other_range(_):
    return web.Response(status=206, body=b"x", headers={"Content-Range": "bytes 7-7/8"})


async def moved(_):
    raise web.HTTPFound("https://192.0.2.1/elsewhere")


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (endless, "at most 2097152 bytes"),
        (other_range, "status 200 or 206"),
        (moved, "found 302"),
        (ranged([], b"another"), "with the digest"),
        (ranged([], b""), "with the digest"),
    ],
    ids=["endless", "other range", "moved", "other content", "empty"],
)
async def test_what_is_not_the_bundle_is_refused_and_nothing_is_left(spool, directory, tls, handler, said):
    async with asyncio.timeout(WAIT_S), serving(handler) as url:
        with pytest.raises(NotFetched, match=said):
            await https_source.fetch(url, spool, SHA256, tls=tls)
    assert [one.name for one in directory.iterdir() if one.stat().st_size] == []


def host_of(url):
    return url.split("/")[2]


@pytest.mark.parametrize("url", ["http://localhost/bundle", "file:///etc/passwd", "ftp://x", "", "HTTPS://x"])
async def test_other_kinds_of_url_are_not_asked(spool, url):
    with pytest.raises(NotFetched, match="a URL of https"):
        await https_source.fetch(url, spool, SHA256)


async def test_server_of_an_unknown_authority_is_not_asked(spool):
    seen = []
    async with asyncio.timeout(WAIT_S), serving(ranged(seen)) as url:
        with pytest.raises(NotFetched, match="ertificate"):
            await https_source.fetch(url, spool, SHA256)
    assert seen == []


async def test_link_asks_the_engine_first_and_then_each_url(fleet, node, tmp_path, tls):
    async with (
        asyncio.timeout(WAIT_S),
        serving(ranged([])) as url,
        linked(fleet, node, tmp_path / "link", https=tls, hosts=("localhost:1", host_of(url))) as (mine, _),
    ):
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=("https://localhost:1/gone", url)))
        assert (await mine.following(messages.BundleHere)).sha256 == SHA256
    assert (tmp_path / "link" / messages.spool_name(SHA256)).read_bytes() == DATA


@contextlib.asynccontextmanager
async def holding():
    """A server's URL, and what was asked of it as slow: a first byte of that comes, and no more."""
    asked, over = [], asyncio.Event()

    async def answer(request):
        if "slow" not in request.query:
            return await ranged([])(request)
        asked.append(request.query["slow"])
        slow = web.StreamResponse()
        await slow.prepare(request)
        await slow.write(b"x")
        await over.wait()
        return slow

    async with serving(answer) as url:
        try:
            yield url, asked
        finally:
            over.set()


async def test_slow_server_keeps_only_away_what_comes_from_it(fleet, controller, node, tmp_path, tls):
    source = tmp_path / "source"
    source.write_bytes(b"in the engine")
    kept = await chunks.put(controller, source)
    async with (
        asyncio.timeout(WAIT_S),
        holding() as (slow, asked),
        serving(ranged([])) as quick,
        linked(fleet, node, tmp_path / "link", https=tls, hosts=(host_of(slow), host_of(quick))) as (mine, _),
    ):
        await mine.following(messages.LinkState, lambda one: one.up)
        for number in (1, 2):
            mine.send(messages.BundleNeeded(sha256=f"{number:064x}", urls=(f"{slow}?slow={number}",)))
        await until(lambda: done(asked))
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=(quick,)))
        mine.send(messages.BundleNeeded(sha256=kept))
        assert {(await mine.following(messages.BundleHere)).sha256 for _ in range(2)} == {SHA256, kept}
    assert asked == ["1"]


async def test_what_is_needed_no_more_keeps_nothing_away(fleet, node, tmp_path, tls):
    async with (
        asyncio.timeout(WAIT_S),
        holding() as (url, asked),
        linked(fleet, node, tmp_path / "link", https=tls, hosts=(host_of(url),)) as (mine, _),
    ):
        for number in (1, 2):
            mine.send(messages.BundleNeeded(sha256=f"{number:064x}", urls=(f"{url}?slow={number}",)))
        await until(lambda: done(asked))
        mine.send(messages.NothingNeeded())
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=(url,)))
        assert (await mine.following((messages.BundleHere, messages.BundleMissing))).sha256 == SHA256
    assert asked == ["1"]


async def test_bundle_that_a_server_has_does_not_wait_for_the_engine(fleet, node, tmp_path, tls):
    """One that no server has waits for it, and was needed before."""
    away = ("tls://127.0.0.1:1",)
    async with (
        asyncio.timeout(WAIT_S),
        serving(ranged([])) as url,
        linked(fleet, node, tmp_path / "link", urls=away, https=tls, hosts=(host_of(url),)) as (mine, _),
    ):
        mine.send(messages.BundleNeeded(sha256="1" * 64))
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=(url,)))
        assert (await mine.following((messages.BundleHere, messages.BundleMissing))).sha256 == SHA256


async def done(asked):
    return bool(asked)


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "[::", "a:99999"])
async def test_url_of_no_host_is_one_that_has_nothing(fleet, node, tmp_path, host):
    """It is a controller's word, and comes again after each start of the link."""
    async with asyncio.timeout(WAIT_S), linked(fleet, node, tmp_path / "link", hosts=(host,)) as (mine, _):
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=(f"https://{host}/x",)))
        assert (await mine.following(messages.BundleMissing)).sha256 == SHA256


async def test_server_that_the_host_does_not_name_is_not_asked(fleet, node, tmp_path, tls):
    """Whoever has a controller writes URLs; the host's own network is none of his."""
    seen = []
    async with (
        asyncio.timeout(WAIT_S),
        serving(ranged(seen)) as url,
        linked(fleet, node, tmp_path / "link", https=tls, hosts=("bundles.example.org", "localhost")) as (mine, _),
    ):
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=(url,)))
        missing = await mine.following(messages.BundleMissing)
    assert "https_hosts" in missing.reason
    assert seen == []


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://bundles.example.org/x", True),
        ("https://BUNDLES.example.org/x", True),
        ("https://bundles.example.org", True),
        ("https://packages.example.org:8443/x?y=z", True),
        ("https://bundles.example.org:8443/x", False),
        ("https://packages.example.org/x", False),
        ("https://x.bundles.example.org/x", False),
        ("https://bundles.example.org.evil.example/x", False),
        ("https://bundles.example.org@evil.example/x", False),
        ("https://evil.example/https://bundles.example.org/x", False),
        ("https://evil.example#bundles.example.org", False),
        ("https://evil.example?bundles.example.org", False),
        ("https:bundles.example.org/x", False),
        ("https://[::1", False),
        ("https:///x", False),
        ("", False),
    ],
)
def test_servers_are_named_exactly(url, named):
    assert https_source.is_named(url, ("bundles.example.org", "Packages.example.org:8443")) is named


@pytest.mark.parametrize("size", [CHUNK_BYTES, 2 * len(DATA) // CHUNK_BYTES * CHUNK_BYTES])
async def test_part_that_somebody_else_spoilt_does_not_keep_the_bundle_away(fleet, node, tmp_path, tls, size):
    """An engine, or a server that was asked before, can give anything and break off."""

    async def answer(request):
        start = request.http_range.start or 0
        if start >= len(DATA):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(DATA)}"})
        return await ranged([])(request)

    place = tmp_path / "link"
    async with (
        asyncio.timeout(WAIT_S),
        serving(answer) as url,
        linked(fleet, node, place, https=tls, hosts=(host_of(url),)) as (mine, _),
    ):
        (place / f"{SHA256}.part").write_bytes(b"?" * size)
        mine.send(messages.BundleNeeded(sha256=SHA256, urls=(url,)))
        await mine.following((messages.BundleHere, messages.BundleMissing))
    assert (place / messages.spool_name(SHA256)).read_bytes() == DATA


async def test_spoilt_part_does_not_keep_a_bundle_of_the_engine_away(fleet, controller, node, tmp_path):
    place, source = tmp_path / "link", tmp_path / "source"
    source.write_bytes(DATA)
    await chunks.put(controller, source)
    async with asyncio.timeout(WAIT_S), linked(fleet, node, place) as (mine, _):
        await mine.following(messages.LinkState, lambda one: one.up)
        (place / f"{SHA256}.part").write_bytes(b"?" * CHUNK_BYTES)
        mine.send(messages.BundleNeeded(sha256=SHA256))
        await mine.following((messages.BundleHere, messages.BundleMissing))
    assert (place / messages.spool_name(SHA256)).read_bytes() == DATA
