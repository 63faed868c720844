"""Published files: how they are said in an intent and listed in a rendering."""

from __future__ import annotations

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.nginx import applied, decode, file_sets, render
from tests.house import nginxes

FILES = {"index.html": "ab" * 32, "style/site.css": "cd" * 32}


def rendering(**files):
    plain = nginxes.document(nginxes.site(publish="acme.site"), published=[nginxes.published(**(files or FILES))])
    return render.render(decode.read(plain), nginxes.PLACE)


def test_a_set_is_read_as_it_was_written_and_named_by_what_is_in_it():
    (listed,) = applied.listings(applied.read(rendering()))
    assert (listed.owner, dict(listed.files)) == (("acme", "acme.site"), FILES)
    (site,) = applied.sites(applied.read(rendering()))
    assert site.copies == (listed.digest,)
    (other,) = applied.listings(applied.read(rendering(**{**FILES, "index.html": "ef" * 32})))
    assert other.digest != listed.digest


def test_files_of_unsigned_plugins_lie_elsewhere():
    plain = nginxes.document(nginxes.site(publish="acme.site"), published=[nginxes.published(publisher="", **FILES)])
    (listed,) = applied.listings(applied.read(render.render(decode.read(plain), nginxes.PLACE)))
    assert listed.owner == ("-", "acme.site")


def test_a_set_that_no_site_serves_is_not_copied():
    plain = nginxes.document(
        nginxes.site(publish="acme.site", enabled=False),
        published=[nginxes.published(**FILES), nginxes.published("acme.other", x="ab" * 32)],
    )
    assert applied.listings(applied.read(render.render(decode.read(plain), nginxes.PLACE))) == ()


@pytest.mark.parametrize(
    "name", ["../etc/passwd", "/etc/passwd", "a/../b", "a//b", ".hidden", "a b", "a\nb", "a;b", "", "x" * 600, "a\0"]
)
def test_no_path_leads_out_of_a_plugin_s_files(name):
    with pytest.raises(IntentRefused):
        decode.read(nginxes.document(published=[nginxes.published(**{name: "ab" * 32})]))


@pytest.mark.parametrize("digest", [None, 1, "", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", ["ab" * 32]])
def test_what_is_no_digest_is_refused(digest):
    with pytest.raises(IntentRefused):
        decode.read(nginxes.document(published=[nginxes.published(x=digest)]))


@pytest.mark.parametrize("owner", [{"plugin": "../x"}, {"plugin": "a/b"}, {"publisher": ".."}, {"publisher": "a/b"}])
def test_an_owner_is_a_plugin_and_its_publisher(owner):
    with pytest.raises(IntentRefused):
        decode.read(nginxes.document(published=[{**nginxes.published(x="ab" * 32), **owner}]))


@pytest.mark.parametrize(
    "text",
    ["", "acme/acme.site", "acme\n", "../x\n", "acme/acme.site\nab  x\n", f"acme/acme.site\n{'ab' * 32}  ../x\n"],
)
def test_what_is_no_listing_is_refused(text):
    with pytest.raises(ValueError, match=r"listing|unpack"):
        file_sets.read(text)
