"""Published files of plugins, copied by the kind nginx and served by real nginx; and its disk, when it is full."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator

import pytest

from latticed.model.errors import Problem
from tests.house import faults, nginx_places, nginxes

pytestmark = pytest.mark.root


@pytest.fixture
def web(tmp_path) -> Iterator[nginx_places.Web]:
    with nginx_places.web(tmp_path) as made:
        yield made


def site(web, files, *more):
    return web.intent(nginxes.site(publish="acme.site"), *more, published=[web.publish(**files)])


def got(web, path="/"):
    return nginxes.get(web.ports[0], "shop.example.org", path)


def copies(web):
    return {one.name for one in (web.directory / "published").iterdir()}


def test_published_files_are_served_and_switched_whole(web):
    first = site(web, {"index.html": "one", "style/site.css": "a {}"})
    web.committed(first)
    status, headers, body = got(web)
    assert (status, headers["X-Content-Type-Options"], body) == (200, "nosniff", b"one")
    assert got(web, "/style/site.css")[2] == b"a {}"
    (copy,) = copies(web)
    for one in (web.directory / "published").rglob("*"):
        found = one.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o755 if one.is_dir() else 0o644)
    # What a plugin writes later is served by the next plan alone, and then nothing of the old set is.
    second = site(web, {"index.html": "two"})
    shutil.rmtree(web.directory / "static/acme/acme.site/style")
    assert got(web)[2] == b"one"
    web.committed(second)
    assert (got(web)[2], got(web, "/style/site.css")[0]) == (b"two", 404)
    assert copy in copies(web), "an undoing goes back to it"
    web.committed(site(web, {"index.html": "three"}))
    assert copy not in copies(web)


def test_an_undoing_serves_the_set_of_before_though_its_files_are_gone(web):
    before = web.committed(site(web, {"index.html": "one"}))
    snapshot = web.kind.snapshot(web.tools)
    web.committed(site(web, {"index.html": "two"}))
    web.kind.restore(snapshot, web.tools)
    assert (got(web)[2], web.live().text.encode()) == (b"one", before)


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def links_above(path):
    path.parent.rename(path.parent.with_name("other"))
    path.parent.symlink_to("other")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("another"),
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 65 << 20),
        *(link, links_above, fifo, directory),
    ],
)
def test_a_file_that_is_not_as_it_was_planned_is_refused_and_nothing_is_touched(web, change):
    """The daemon may write anything there: a link to what root alone may read, a pipe that nobody writes to."""
    web.committed(web.intent(nginxes.site(answer=410)))
    rendering = web.kind.render(site(web, {"index.html": "one"}), None, {})
    change(web.directory / "static/acme/acme.site/index.html")
    with pytest.raises(Problem, match=r"index\.html of acme\.site is not as it was planned"):
        web.kind.validate(rendering, web.tools)
    assert got(web)[0] == 410
    # Where it happens in between, or the copy is lost before a boot, it is that site's 503.
    web.kind.commit(rendering, web.tools)
    assert (got(web)[0], web.live().facts["sites"][0]["served"]) == (503, False)
    assert copies(web) == set()


def test_a_lost_copy_takes_down_no_other_site(web):
    rendering = web.committed(site(web, {"index.html": "one"}, nginxes.site("wiki", answer=404)))
    for lost in ("published", "static"):
        shutil.rmtree(web.directory / lost)
    web.kind.commit(rendering, web.tools)
    web.kind.self_check(rendering, web.tools)
    assert (web.get("shop.example.org"), web.get("wiki.example.org")) == (503, 404)
    web.publish(**{"index.html": "one"})
    web.kind.commit(rendering, web.tools)
    assert web.get("shop.example.org") == 200


def test_a_full_disk_undoes_a_change_without_space(tmp_path):
    """Before it, while files are copied, and after the change was made."""
    place = tmp_path / "web"
    place.mkdir()
    with faults.small_disk(place, kib=512, uid=0), nginx_places.web(place) as web:
        before = web.committed(site(web, {"index.html": "one"}))
        snapshot = web.kind.snapshot(web.tools)
        pages = {f"{number}.txt": f"{number}" * 100_000 for number in range(3)}
        large = web.kind.render(site(web, {"index.html": "two", **pages}), None, {})
        small = web.kind.render(web.intent(nginxes.site(answer=410)), None, {})
        with pytest.raises(OSError, match="No space left") as failed:
            web.kind.commit(large, web.tools)
        assert failed.value.errno == errno.ENOSPC
        assert (got(web)[2], len(copies(web))) == (b"one", 1)
        web.kind.restore(snapshot, web.tools)
        faults.fill(place / "filler")
        with pytest.raises(OSError, match="No space left"):
            web.kind.commit(small, web.tools)
        web.kind.restore(snapshot, web.tools)
        assert (got(web)[2], web.live().text.encode()) == (b"one", before)
        (place / "filler").unlink()
        web.kind.commit(small, web.tools)
        assert got(web)[0] == 410
        faults.fill(place / "filler")
        web.kind.restore(snapshot, web.tools)
        assert (got(web)[2], web.live().text.encode()) == (b"one", before)
        (place / "filler").unlink()
