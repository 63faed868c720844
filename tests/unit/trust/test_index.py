"""The index of a marketplace: what is read, what is refused, and which index may take another's place."""

from __future__ import annotations

import base64
import json
from itertools import count

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.kit import text
from latticed.model.errors import Problem
from latticed.trust import index, keys, signed_document
from tests.house import bundles, indexes

NOW = 1_790_000_000
SOURCE = bundles.author("source")
OTHER = bundles.author("other")
BASE = "https://mirror.example/p/"
AT = b'"generated_at": "2026-06-15T00:00:00Z"'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.drop(tmp_path_factory.mktemp("author"), author=bundles.author("acme"), id="acme.demo")


@pytest.fixture(scope="module")
def raw(bundle):
    return indexes.index(indexes.entry(bundle, BASE), signers=[SOURCE], at=NOW)


def judge(raw, *, seen=None, pinned=(SOURCE,), now_s=NOW, threshold=1):
    found = index.decode(indexes.encoded(raw))
    return index.judge(found, pinned=[one.public for one in pinned], threshold=threshold, seen=seen, now_s=now_s)


def refused(raw, **how):
    with pytest.raises(Problem) as caught:
        judge(raw, **how)
    return caught.value.code


def resigned(raw, *signers, **fields):
    return indexes.sign({**raw, **fields}, *(signers or (SOURCE,)))


def only(raw, **fields):
    """The decoded entry of an index whose one plugin has `fields` in place of its own."""
    (plugin,) = raw["plugins"]
    return index.decode(indexes.encoded(resigned(raw, plugins=[{**plugin, **fields}])))


def released(raw, **fields):
    """The decoded release of an index whose one release has `fields` in place of its own; None removes."""
    (plugin,) = raw["plugins"]
    (release,) = plugin["releases"]
    changed = {name: value for name, value in {**release, **fields}.items() if value is not None}
    found = only(raw, releases=[changed], channels={})
    return found.entries["acme.demo"].releases[0]


def test_index_says_what_its_document_says(raw, bundle):
    found = index.decode(indexes.encoded(raw))
    entry = found.entries["acme.demo"]
    (release,) = entry.releases
    assert (found.status, found.refused, entry.unsupported, release.unsupported) == ("official", (), "", "")
    assert entry.channels == {"stable": "1.0.0"}
    assert release.capabilities == tuple(bundle.raw["capabilities"])
    assert release.artifact_sha256 == bundle.raw["digest_sha256"]
    assert entry.release("1.0.0") is release
    assert judge(raw).browse_only == ""


def test_signature_equals_that_of_an_independent_signer(raw):
    unsigned = {name: value for name, value in raw.items() if name != "signatures"}
    assert index.signed(unsigned, publisher="source", key=SOURCE.key) == raw
    assert index.signed(raw, publisher="source", key=SOURCE.key) == raw
    both = index.signed(raw, publisher="other", key=OTHER.key)
    assert judge(both, pinned=(SOURCE, OTHER), threshold=2).seen.keys == {SOURCE.public, OTHER.public}


# T36: of the same JSON value the same bytes are signed, and any other value is refused.
def test_index_written_in_another_way_is_the_same_index(raw):
    for data in (json.dumps(raw, sort_keys=True), json.dumps(dict(reversed(raw.items())), indent=7)):
        found = index.decode(data.encode())
        assert found.document.held_by([SOURCE.public]) == {SOURCE.public}
        assert found.document.sha256 == index.decode(indexes.encoded(raw)).document.sha256


# T01
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda raw: indexes.sign(raw, OTHER), "index_signature_invalid"),
        (lambda raw: {**raw, "signatures": []}, "index_unsigned"),
        (lambda raw: {**raw, "publishers": [{"id": "new"}]}, "index_signature_invalid"),
        (lambda raw: indexes.sign(raw, SOURCE, domain=b"LATTICED-MANIFEST-V2\n"), "index_signature_invalid"),  # T08
        (lambda raw: {**raw, "signatures": [{"publisher": "source"}, 7]}, "index_unsigned"),
        (lambda raw: {**raw, "signatures": [{"signature_ed25519": "AAAA"}]}, "index_signature_invalid"),
    ],
)
def test_index_that_no_pinned_key_signed_is_refused(raw, change, code):
    assert refused(change(raw)) == code


# T37
def test_unknown_fields_are_signed_like_all_others(raw):
    assert judge(resigned(raw, future={"a": [1]})).seen is not None
    assert refused({**raw, "future": {"a": [1]}}) == "index_signature_invalid"


# T43
def test_official_index_has_to_be_signed_by_a_pinned_key(raw):
    assert refused({**raw, "signatures": []}) == "index_unsigned"
    assert refused(raw, pinned=()) == "index_unsigned"


@pytest.mark.parametrize("status", ["draft", "example"])
def test_draft_is_for_browsing_only(raw, status):
    unsigned = {**raw, "status": status, "signatures": []}
    assert (judge(unsigned).browse_only != "", judge(unsigned).seen) == (True, None)
    assert judge(unsigned, pinned=()).browse_only != ""
    assert status in judge(resigned(raw, status=status)).browse_only
    # Once a signed one was there, an unsigned one is somebody else's.
    assert refused(unsigned, seen=judge(raw).seen) == "index_unsigned"


# T33, T34
def test_each_key_counts_once(raw):
    (one,) = raw["signatures"]
    twice = {**raw, "signatures": [one, {**one, "publisher": "another-label"}]}
    assert refused(twice, threshold=2, pinned=(SOURCE, OTHER)) == "index_signature_invalid"
    assert refused(twice, threshold=2, pinned=(SOURCE, SOURCE)) == "index_signature_invalid"
    broken = {**raw, "signatures": [{"publisher": "x", "signature_ed25519": OTHER.sign(b"else")}, one]}
    assert judge(broken).seen is not None


# T09, T10, T14, T18
def test_generated_at_never_goes_back(raw):
    seen = judge(raw).seen
    assert judge(raw, seen=seen).seen == seen
    assert refused(resigned(raw, generated_at=indexes.moment(NOW - 1)), seen=seen) == "index_rolled_back"
    assert refused(resigned(raw, publishers=[{"id": "new"}]), seen=seen) == "index_changed"
    newer = judge(resigned(raw, generated_at=indexes.moment(NOW + 60)), seen=seen, now_s=NOW + 60)
    assert newer.seen.generated_s == NOW + 60


# T20
def test_taking_a_key_away_ends_what_it_dated(raw):
    """A key that dated an index at the very edge is unpinned; the next index, under the new key, counts again."""
    seen = judge(resigned(raw, generated_at=indexes.moment(NOW + 300))).seen
    rotated = indexes.sign({**raw, "generated_at": indexes.moment(NOW - 60)}, OTHER)
    assert refused(rotated, seen=seen, pinned=(SOURCE, OTHER)) == "index_rolled_back"
    assert judge(rotated, seen=seen, pinned=(OTHER,)).seen.keys == {OTHER.public}


# T45, T21
def test_index_from_the_future_is_refused(raw):
    assert judge(resigned(raw, generated_at=indexes.moment(NOW + 300))).seen is not None
    assert refused(resigned(raw, generated_at=indexes.moment(NOW + 301))) == "index_from_future"
    assert refused(resigned(raw, generated_at="9999-12-31T23:59:59Z")) == "index_from_future"
    assert refused(raw, now_s=NOW - 2 * 365 * 86_400) == "index_from_future"


# T15, T16
def test_age_counts_from_generated_at(raw):
    document = index.decode(indexes.encoded(raw)).document
    for now_s, expected in ((NOW, False), (NOW + 100, False), (NOW + 101, True), (NOW - 301, True)):
        assert index.too_old(document, max_age_s=100, now_s=now_s) is expected


# T16, T21
@pytest.mark.parametrize(
    "value",
    [
        -1, 0, "2", True, None, 10**15, [], {}, "",
        "2026-06-15t00:00:00z", "2026-06-15T00:00:00z", "2026-06-15T00:00:00+00:00", "2026-06-15T02:00:00+02:00",
        "2026-06-15T00:00:00.5Z", "2026-06-30T23:59:60Z", "2026-02-30T00:00:00Z", "2026-06-15T24:00:00Z", "2026-06-15",
        "2026-06-15T00:00:00Z\n", "٢٠٢٦-06-15T00:00:00Z", "-026-06-15T00:00:00Z",
    ],
)  # fmt: skip
def test_moments_have_one_form(raw, value):
    assert refused({**raw, "generated_at": value}) == "index_invalid"


@pytest.mark.parametrize("number", ["1.0", "1e3", str(2**53), str(10**30), "NaN"])
def test_numbers_are_exact_or_refused(raw, number):
    with pytest.raises(Problem) as caught:
        index.decode(json.dumps({**raw, "future": "N"}).replace('"N"', number).encode())
    assert caught.value.code == "index_invalid"


# T02, T08, T38
@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{", b'"x"', b"\xff", b"\xef\xbb\xbf{}", b"{}",
        json.dumps(bundles.manifest_v2()).encode(),
        b'{"schema": "lattice.plugin.index.v2", %s, "status": "draft"}' % AT,
        b'{"schema": "lattice.plugin.index.v1", %s, "status": "final"}' % AT,
        b'{"schema": "lattice.plugin.index.v1", "schema": "lattice.plugin.index.v1", %s, "status": "draft"}' % AT,
        b'{"schema": "lattice.plugin.index.v1", %s, "status": "draft", "plugins": {}}' % AT,
        b'{"a": "\\ud800"}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_index_is_refused(data):
    with pytest.raises(Problem) as caught:
        index.decode(data)
    assert caught.value.code == "index_invalid"


# T39, T06
@pytest.mark.parametrize(
    "plugin_id",
    ["../x", "a/b", "%2e%2e", "?", "#", "a\0b", "acme\nx", "", "ab", "latticed.x", "latticed", 7, None, "A.b"],
)
def test_entry_without_a_usable_id_is_refused_alone(raw, bundle, plugin_id):
    (plugin,) = raw["plugins"]
    found = index.decode(indexes.encoded({**raw, "plugins": [{**plugin, "id": plugin_id}, plugin]}))
    assert list(found.entries) == ["acme.demo"]
    assert len(found.refused) == 1
    assert found.refused[0].isprintable()


def test_id_that_comes_twice_names_nothing(raw):
    (plugin,) = raw["plugins"]
    found = index.decode(indexes.encoded({**raw, "plugins": [plugin, {**plugin, "id": "acme.other"}, plugin]}))
    assert (list(found.entries), len(found.refused)) == (["acme.other"], 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"publisher": "../x"}, {"publisher": None}, {"publisher": "latticed"}, {"type": "native"}, {"type": 1},
        {"releases": []}, {"releases": {}}, {"releases": None}, {"channels": []}, {"channels": {"beta": "1.0.0"}},
        {"channels": {"stable": "2.0.0"}}, {"channels": {"alpha": "1.0.0"}}, {"latest": "0.9.0"},
    ],
)  # fmt: skip
def test_broken_entry_is_listed_with_its_reason(raw, fields):
    found = only(raw, **fields)
    assert found.entries["acme.demo"].unsupported
    assert not found.refused


# T04, T39, T40
@pytest.mark.parametrize(
    "fields",
    [
        {"version": "../x"}, {"version": "a/b"}, {"version": "1..2"}, {"version": ""}, {"version": "%2e%2e"},
        {"version": "1?"}, {"version": "1#"}, {"version": "1\0"}, {"version": "1\n"}, {"version": 1}, {"version": "-1"},
        {"channel": "beta"}, {"channel": 1}, {"capabilities": ["rpc:call"]}, {"capabilities": []},
        {"capabilities": ["kv:read", "kv:read"]}, {"capabilities": "kv:read"}, {"capabilities": [1]},
        {"artifact_sha256": None}, {"artifact_sha256": ""}, {"artifact_sha256": "A" * 64},
        {"artifact_sha256": "a" * 63},        {"artifact_sha256": "sha512:" + "a" * 64}, {"artifact_sha256": 7},
        {"signature_ed25519": None}, {"signature_ed25519": "AAAA"}, {"signature_ed25519": 1},
        {"artifact_url": "https://mirror.example/demo.tar.gz"},
        *[{name: url} for name in ("manifest_url", "artifact_url") for url in (
            None, 7, "", "http://a.example/x", "HTTPS://a.example/x", "https://u@a.example/x", "https://u:p@a.example/x",
            "https://a.example/x?y", "https://a.example/x?", "https://a.example/x#y", "https://a.example/x#",
            "https://a.example/../x", "https://a.example/%2e%2e/x", "https://a.example/a%2fb", "https://a.example/a%5cb",
            "https://a.example/%00", "https://a.example/%", "https://a.example/x\n", "https://a.example/ x",
            "https://a.example\\x", "https://a.example", "https:///x", "https://127.1/x", "https://a.example:0/x",
            "https://a.example:65536/x", "https://a.example:1:2/x", "https://[::1/x", "file://host/x", "ftp://a.example/x",
            "https://a.example/" + "x" * 2048, "javascript:alert(1)", "https://a.example/%ff",
        )],
    ],
)  # fmt: skip
def test_broken_release_is_listed_with_its_reason(raw, fields):
    found = released(raw, **fields)
    assert found.unsupported
    assert found.unsupported.isprintable()


@pytest.mark.parametrize(
    "url", ["https://a.example/x", "https://a.example:8443/a/b%20c", "https://[2001:db8::1]:443/x", "file:///srv/x"]
)
def test_plain_addresses_are_taken(url):
    assert index.url_fault(url) == ""


# T35
def test_weak_and_malformed_publisher_keys_are_left_out(raw):
    weak = base64.b64encode(bytes(32)).decode()
    claimed = [
        {"id": "acme", "public_key_ed25519": OTHER.public},
        {"id": "weak", "public_key_ed25519": weak},
        {"id": "acme", "public_key_ed25519": SOURCE.public},
        {"id": "../x", "public_key_ed25519": OTHER.public},
        7,
    ]
    found = index.decode(indexes.encoded({**raw, "publishers": claimed}))
    assert (found.publishers, len(found.refused)) == ({"acme": OTHER.public}, 4)


def test_index_laid_out_as_the_public_one_is_read(raw, bundle):
    """Alpha alone, several channels, capabilities of each release, others' bundle formats, no `latest`; a draft."""
    alpha = indexes.release(bundle, BASE, version="2.0.0-alpha.1", channel="alpha", capabilities=["kv:read"])
    foreign = indexes.release(
        bundle,
        BASE,
        version="3.0.0-alpha.1",
        channel="alpha",
        capabilities=["rpc:call"],
        artifact_url=f"{BASE}x.tar.gz",
    )
    both = indexes.entry(bundle, BASE, alpha, latest="1.0.0")
    alpha_only = {**both, "id": "acme.alpha", "releases": [foreign, alpha], "channels": {"alpha": "2.0.0-alpha.1"}}
    del alpha_only["latest"]
    found = index.decode(indexes.encoded(indexes.index(both, alpha_only, at=NOW, status="draft")))
    assert not found.refused
    one, other = found.entries.values()
    assert (one.unsupported, other.unsupported) == ("", "")
    assert (one.channels, other.channels) == (
        {"stable": "1.0.0", "alpha": "2.0.0-alpha.1"},
        {"alpha": "2.0.0-alpha.1"},
    )
    assert [bool(release.unsupported) for release in (*one.releases, *other.releases)] == [False, False, True, False]
    assert one.releases[1].capabilities == ("kv:read",)


# T27
def test_dependencies_of_an_index_mean_nothing(raw):
    found = only(raw, dependencies=[{"id": "evil.plugin"}])
    assert "dependencies" not in index.IndexEntry.__dataclass_fields__
    assert found.entries["acme.demo"].unsupported == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = ("id", "name", "publisher", "type", "summary", "channels", "latest", "capabilities", "releases")
_RELEASE = (
    "version",
    "channel",
    "capabilities",
    "manifest_url",
    "artifact_url",
    "artifact_sha256",
    "signature_ed25519",
)


@settings(max_examples=40)
@given(
    st.dictionaries(st.sampled_from(_NAMES), _JSON), st.dictionaries(st.sampled_from(_RELEASE), _JSON), st.booleans()
)
def test_any_value_in_any_field_refuses_at_most_its_entry(fields, release, inside):
    """And whatever is listed can be shown."""
    good = {
        "id": "acme.demo",
        "publisher": "acme",
        "type": "system",
        "capabilities": ["kv:read"],
        "releases": [release],
    }
    raw = {
        "schema": index.SCHEMA,
        "generated_at": "2026-06-15T00:00:00Z",
        "status": "draft",
        "plugins": [{**good, **fields} if inside else fields],
    }
    found = index.decode(json.dumps(raw).encode())
    assert len(found.entries) + len(found.refused) == 1
    for entry in found.entries.values():
        shown = [
            entry.id,
            entry.name,
            entry.publisher,
            entry.type,
            entry.summary,
            entry.unsupported,
            *entry.channels.values(),
        ]
        shown += [str(value) for one in entry.releases for value in (one.version, one.unsupported, *one.capabilities)]
        assert all(text.escape(one) == one for one in shown)


@settings(max_examples=40)
@given(_JSON.filter(lambda value: isinstance(value, dict)))
def test_what_is_signed_is_rfc_8785_without_signatures(value):
    expected = rfc8785.dumps({name: one for name, one in value.items() if name != "signatures"})
    assert index.signing_payload(value) == b"LATTICE-PLUGIN-INDEX-V1\n" + expected


@settings(max_examples=40)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash(data):
    with pytest.raises(Problem):
        index.decode(data)


def test_many_signatures_cost_a_bounded_number_of_checks(raw, monkeypatch):
    tried = count()
    real = keys.verify_signature
    monkeypatch.setattr(keys, "verify_signature", lambda *args: (next(tried), real(*args))[1])
    (one,) = raw["signatures"]
    most = signed_document.MAX_SIGNATURES
    fake = {"publisher": "x", "signature_ed25519": OTHER.sign(b"else")}
    assert judge({**raw, "signatures": [*[fake] * (most - 1), one]}).seen is not None
    assert next(tried) <= most
    assert refused({**raw, "signatures": [one] * (most + 1)}) == "index_invalid"
