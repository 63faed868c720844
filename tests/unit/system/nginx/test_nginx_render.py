"""What is written of an intent, and what is read of that again: files, sites, certificates, and who is to blame."""

from __future__ import annotations

import copy
import random

import pytest

from latticed.system.nginx import applied, decode, render, syntax
from latticed.system.nginx.syntax import Directive
from tests.house import nginxes


def rendered(*sites, **changes):
    return render.render(decode.read(nginxes.document(*sites, **changes)), nginxes.PLACE)


def shuffled(rng, value):
    """The same document with keys and lists in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(rng, inner)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return rng.sample([shuffled(rng, one) for one in value], len(value))
    return value


@pytest.mark.parametrize("seed", range(50))
def test_the_same_intent_gives_the_same_bytes_in_any_order(seed):
    rng = random.Random(seed)
    plain = nginxes.sound(rng)
    again = shuffled(rng, copy.deepcopy(plain))
    assert render.render(decode.read(plain), nginxes.PLACE) == render.render(decode.read(again), nginxes.PLACE)


@pytest.mark.parametrize("seed", range(50))
def test_a_rendering_is_read_as_it_was_written(seed):
    plain = nginxes.sound(random.Random(seed))
    intent = decode.read(plain)
    files = applied.read(render.render(intent, nginxes.PLACE))
    assert dict(files) == dict(render.files(intent, nginxes.PLACE))
    for name, text in files.items():
        assert name.startswith("published/") or syntax.text(syntax.read(text)) == text


def test_one_site_s_change_is_in_its_own_files_alone():
    sites = [nginxes.site("shop"), nginxes.site("wiki")]
    before = applied.read(rendered(*sites))
    sites[1] = nginxes.site("wiki", websockets=True, tls=nginxes.tls("wiki"))
    after = applied.read(rendered(*sites))
    assert {name for name in before if before[name] != after[name]} == {"sites/wiki.conf"}


def test_sites_tell_what_they_need():
    shop, wiki = applied.sites(applied.read(rendered(nginxes.site("wiki"), nginxes.site(tls=nginxes.tls()))))
    assert (shop.name, shop.domains) == ("shop", ("shop.example.org",))
    assert shop.pair == ("/etc/letsencrypt/live/shop/fullchain.pem", "/etc/letsencrypt/live/shop/privkey.pem")
    assert (wiki.name, wiki.pair) == ("wiki", ())


def test_a_bad_site_is_on_disk_as_it_answers_503():
    files = applied.read(rendered(nginxes.site(tls=nginxes.tls()), nginxes.site("wiki")))
    tree = applied.tree(files, {"shop"})
    assert set(tree) == {"nginx.conf", "sites/shop.conf", "sites/wiki.conf"}
    assert tree["sites/shop.conf"] == files["unserved/shop.conf"]
    assert tree["sites/wiki.conf"] == files["sites/wiki.conf"]
    assert "ssl_certificate" not in tree["sites/shop.conf"]


def test_a_site_that_is_switched_off_is_written_as_one_that_is_not_served():
    files = applied.read(rendered(nginxes.site(tls=nginxes.tls(), enabled=False)))
    assert files["sites/shop.conf"] == files["unserved/shop.conf"]


def test_hsts_is_said_by_tls_alone():
    files = applied.read(rendered(nginxes.site(tls=nginxes.tls(force=False, hsts={"max_age_s": 60}))))
    plain, secure = syntax.read(files["sites/shop.conf"])
    names = [[one.name for one in server.block or ()] for server in (plain, secure)]
    assert "add_header" not in names[0]
    assert "add_header" in names[1]


@pytest.mark.parametrize(
    ("stderr", "names"),
    [
        (b'[emerg] 1#1: unknown directive "x" in /d/conf/sites/wiki.conf:3\n', {"wiki"}),
        (b"[warn] 1#1: x in /d/conf/sites/shop.conf:3\n[emerg] 1#1: y in /d/conf/sites/wiki.conf:4\n", {"wiki"}),
        (b'[emerg] 1#1: cannot load certificate "/etc/letsencrypt/live/shop/fullchain.pem": BIO\n', {"shop"}),
        (b'[emerg] 1#1: cannot load certificate key "/etc/letsencrypt/live/shop/privkey.pem": PEM\n', {"shop"}),
        (b"[emerg] 1#1: bind() to 0.0.0.0:80 failed (98: Address already in use)\n", set()),
        (b"[emerg] 1#1: x in /d/conf/nginx.conf:4\n", set()),
        (b"[warn] 1#1: x in /d/conf/sites/shop.conf:3\n", set()),
        (b"", set()),
    ],
)
def test_the_site_that_nginx_complains_of_is_found(stderr, names):
    files = applied.read(rendered(nginxes.site(tls=nginxes.tls()), nginxes.site("wiki")))
    assert applied.blamed(files, stderr) == names


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "x" + text,
        lambda text: text.replace("#file nginx.conf", "#file other.conf"),
        lambda text: text.replace("#file sites/shop.conf", "#file sites/../shop.conf"),
        lambda text: text.replace("#file sites/shop.conf", "#file sites/a.conf"),
        lambda text: text.replace("#file unserved/shop.conf", "#file sites/shop.conf"),
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("listen", 'lis"ten', 1),
        lambda text: text.replace("}", "", 1),
        lambda text: text + "é",
    ],
)
def test_what_is_no_rendering_is_refused(change):
    text = rendered(nginxes.site()).decode("ascii")
    with pytest.raises(ValueError):
        applied.read(change(text).encode())


@pytest.mark.parametrize("word", ['a"b', "a\\b", 'a;"', "a\nb", "é", "a\x00"])
def test_no_word_is_written_that_is_read_as_something_else(word):
    with pytest.raises(ValueError, match="no word"):
        syntax.text([Directive("x", (word,))])


@pytest.mark.parametrize("word", ["a;b", "a b", "a{b", "a}b", "a#b", "", "a'b", "#", ";"])
def test_a_word_that_needs_quotes_gets_them(word):
    directives = (Directive("x", (word, "y"), (Directive("z", (word,)),)),)
    assert syntax.read(syntax.text(directives)) == directives


@pytest.mark.parametrize(
    "source", ["x", "x {", "}", "x; }", ";", "{ }", "x y { z }", "x 'y';", "x \\y;", "x\ty;", "x {" * 9 + "}" * 9]
)
def test_a_text_that_is_not_of_our_writing_is_refused(source):
    with pytest.raises(ValueError):
        syntax.read(source)
