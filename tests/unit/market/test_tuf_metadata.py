"""Attacks on the metadata of a TUF repository, against what judges it. T-numbers: index_attacks.json."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import TargetFile

from latticed import market
from latticed.market import sources, tuf
from latticed.market.fetch import Fetcher
from latticed.market.shelf import MarketShelf
from latticed.market.tuf import TufFormat
from latticed.market.tuf_metadata import TufRepository, Wanted
from latticed.model.errors import Problem
from latticed.settings.market import SourceSettings
from tests.house import tuf_repositories
from tests.house.tuf_repositories import DAY_S, KEYS, OTHER, Repository, signer

NOW = 1_780_000_000
INDEX = b'{"an": "index"}'
FRESH = signer()


@pytest.fixture
def server():
    made = Repository(now=NOW)
    made.put("plugins.json", INDEX)
    made.publish()
    return made


def look(server, kept=None, *, root=None, now_s=NOW, path="plugins.json", offline=False):
    """The repository and a target, asking the server for what is wanted; `kept` is changed as a refresh would."""
    files, answers = dict(kept or {}), {}
    for _ in range(100):
        try:
            found = TufRepository(root or server.root, files, answers, now_s=now_s, offline=offline)
            target = found.target(path)
        except Wanted as wanted:
            data = server.files.get(f"metadata/{wanted.name}")
            if data is not None and len(data) > wanted.max_bytes:
                raise Problem("fetch_too_large", wanted.name) from wanted
            answers[wanted.name] = data
        else:
            return found, target
    raise AssertionError("it never ends")


def refused(server, kept=None, **options):
    with pytest.raises(Problem) as caught:
        look(server, kept, **options)
    return caught.value.code


def accepted(server, kept=None, **options):
    """What is kept after a refresh."""
    return look(server, kept, **options)[0].kept()


def test_what_the_roles_sign_is_found_and_checked(server):
    found, target = look(server)
    target.check(io.BytesIO(INDEX))
    assert server.files[f"targets/{target.name}"] == INDEX
    assert {name: role.version for name, role in found.roles.items()} == dict.fromkeys(tuf_repositories.ROLES, 1)
    assert look(server, path="revocations.json")[1] is None
    # Once more from what is kept, with nobody asked.
    with_nothing = Repository(now=NOW)
    with_nothing.files = {}
    again, same = look(with_nothing, found.kept(), root=server.root, now_s=None, offline=True)
    assert (again.roles, same) == (found.roles, target)


# T03, T04, T23
@pytest.mark.parametrize("data", [INDEX[:-1] + b"]", INDEX[:-1], INDEX + b" ", b""])
def test_target_of_other_bytes_is_refused(server, data):
    _, target = look(server)
    with pytest.raises(Problem) as caught:
        target.check(io.BytesIO(data))
    assert caught.value.code == "digest_mismatch"


# T04
@pytest.mark.parametrize(
    "hashes", [{"sha256": "A" * 64}, {"sha256": ""}, {"sha256": "ab"}, {"md7": "ab" * 32}, {"sha256": 7}, {}, None]
)
def test_target_without_a_usable_hash_is_refused(server, hashes):
    server.targets.targets["plugins.json"].hashes = hashes
    server.publish()
    try:
        _, target = look(server)
        target.check(io.BytesIO(INDEX))
    except Problem as problem:
        assert problem.code in {"index_invalid", "digest_mismatch"}  # noqa: PT017
    else:
        pytest.fail("it was taken")


def edited(server, name, change):
    """The file of metadata with its JSON changed, signatures as they were."""
    raw = json.loads(server.files[f"metadata/{name}"])
    change(raw)
    server.files[f"metadata/{name}"] = json.dumps(raw).encode()


def without_hashes(server):
    """Have only signatures speak for snapshot and targets."""
    server.snapshot.meta["targets.json"].hashes = server.snapshot.meta["targets.json"].length = None
    server.snapshot.version = server.timestamp.version = 0
    server.publish_snapshot()
    server.timestamp.snapshot_meta.hashes = server.timestamp.snapshot_meta.length = None
    server.timestamp.version = 0
    server.publish_timestamp()


# T01, T34, T37
@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["signatures"].clear(),
        lambda raw: raw["signed"].update(version=2),
        lambda raw: raw["signed"].update(unknown=1),
        lambda raw: raw["signatures"][0].update(sig="00" * 64),
        lambda raw: raw["signatures"][0].update(keyid="0" * 64),
    ],
)
def test_metadata_that_no_key_of_its_role_signed_is_refused(server, name, change):
    without_hashes(server)
    look(server)
    edited(server, name, change)
    assert refused(server) == "index_signature_invalid"


def test_signature_of_another_role_or_stranger_counts_for_nothing(server):
    """T01, T08: also where the document is of another kind."""
    server.signers["timestamp"] = [OTHER]
    server.publish_timestamp()
    assert refused(server) == "index_signature_invalid"
    server.signers["timestamp"] = [KEYS["snapshot"]]
    server.publish_timestamp()
    assert refused(server) == "index_signature_invalid"
    server.files["metadata/timestamp.json"] = server.files["metadata/1.snapshot.json"]
    assert refused(server) == "index_invalid"
    server.files["metadata/timestamp.json"] = INDEX
    assert refused(server) == "index_invalid"


# T02
@pytest.mark.parametrize("root", [b"", b"{}", b"[]", b"\xff", INDEX, b'{"signed": 7, "signatures": []}'])
def test_pinned_root_that_is_none_asks_nobody(server, root):
    with pytest.raises(Problem) as caught:
        TufRepository(root, {}, {}, now_s=NOW)
    assert caught.value.code == "source_invalid"


def test_pinned_root_has_to_be_signed_by_itself(server):
    raw = json.loads(server.root)
    raw["signatures"] = []
    with pytest.raises(Problem) as caught:
        TufRepository(json.dumps(raw).encode(), {}, {}, now_s=NOW)
    assert caught.value.code == "source_invalid"


# T09, T14, T22
def test_roles_never_go_back(server):
    old = dict(server.files)
    server.publish()
    kept = accepted(server)
    server.files |= old
    assert refused(server, kept) == "index_rolled_back"
    # A newer timestamp for an older snapshot; a newer snapshot for older targets, or without them.
    server.publish_timestamp()
    server.timestamp.snapshot_meta.version = 1
    server.publish_timestamp()
    assert refused(server, kept) == "index_rolled_back"
    for change in ({"version": 1}, None):
        newer = copy.deepcopy(server)
        if change is None:
            newer.snapshot.meta = {"other.json": newer.snapshot.meta["targets.json"]}
        else:
            newer.snapshot.meta["targets.json"].version = 1
        newer.publish_snapshot()
        assert refused(newer, kept) in {"index_rolled_back", "index_invalid"}


def test_same_version_with_other_content_changes_nothing(server):
    """T10: what was seen first stays."""
    kept = accepted(server)
    server.timestamp.version -= 1
    server.holds_s["timestamp"] = 5 * DAY_S
    server.publish_timestamp()
    assert accepted(server, kept) == kept


# T15, T18
@pytest.mark.parametrize("role", tuf_repositories.ROLES)
def test_expired_role_is_refused_until_a_fresh_one_comes(server, role):
    kept = accepted(server)
    server.holds_s[role] = DAY_S
    server.new_root(bump=True)
    server.publish()
    kept = accepted(server, kept)
    later = NOW + 2 * DAY_S
    assert refused(server, kept, now_s=later) == "index_expired"
    # It can be read all the same.
    assert look(server, kept, now_s=None, offline=True)[1] is not None
    server.now = later
    server.new_root(bump=True)
    server.publish()
    assert look(server, kept, now_s=later)[0].roles[role].expires_s == later + DAY_S


# T16, T21
@pytest.mark.parametrize(
    "fields",
    [
        *({"expires": moment} for moment in (
            "2030-06-15t00:00:00z", "2030-06-15T00:00:00z", "2030-06-15T00:00:00+00:00", "2030-06-15T00:00:00.5Z",
            "2030-06-30T23:59:60Z", "2030-02-30T00:00:00Z", "2030-6-15T00:00:00Z", "٢٠٣٠-06-15T00:00:00Z", "",
            None, 7)),
        *({"version": version} for version in (-1, 0, 1.0, "2", True, None, 10**30, 2**63 - 1, [])),
        {"spec_version": "2.0"}, {"_type": "root"}, {"meta": {}},
    ],
    ids=str,
)  # fmt: skip
def test_moments_and_versions_have_one_spelling(server, fields):
    raw = json.loads(server.files["metadata/timestamp.json"])
    raw["signed"].update(fields)
    raw["signatures"] = [KEYS["timestamp"].sign(canonical(raw["signed"])).to_dict()]
    server.files["metadata/timestamp.json"] = json.dumps(raw).encode()
    assert refused(server) == "index_invalid"


def canonical(signed):
    """The canonical JSON of TUF; floats, which it does not have, as json writes them."""
    from securesystemslib.formats import encode_canonical

    try:
        return encode_canonical(signed).encode()
    except Exception:  # noqa: BLE001
        return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()


def test_fast_forward_is_mended_by_a_rotation(server):
    """T20: whoever had the keys of timestamp and snapshot set versions far ahead."""
    server.timestamp.version = server.snapshot.version = 2**53 - 3
    server.snapshot.meta["targets.json"].version = 2**53 - 3
    server.targets.version = 2**53 - 4
    server.publish()
    kept = accepted(server)
    mended = copy.deepcopy(server)
    mended.timestamp.version = mended.snapshot.version = mended.targets.version = 1
    mended.publish()
    assert refused(mended, kept) == "index_rolled_back"
    mended.rotate("timestamp", FRESH)
    mended.rotate("snapshot", FRESH)
    mended.publish()
    found, _ = look(mended, kept)
    assert found.roles["timestamp"].version == 3
    assert found.roles["timestamp"].allowed.isdisjoint(look(server, kept)[0].roles["timestamp"].signers)


def test_files_that_do_not_fit_together_are_refused(server):
    """T22: each valid, of different versions of the repository."""
    first = dict(server.files)
    server.publish()
    for name in ("2.snapshot.json", "2.targets.json"):
        mixed = copy.deepcopy(server)
        mixed.files[f"metadata/{name}"] = first[f"metadata/1{name[1:]}"]
        assert refused(mixed) in {"index_mismatch", "index_rolled_back"}


# T31
@pytest.mark.parametrize(
    ("who", "code"), [("new", "index_signature_invalid"), ("old", "index_signature_invalid"), ("both", None)]
)
def test_next_root_needs_the_old_and_the_new_keys(server, who, code):
    signers = {"new": [FRESH], "old": [KEYS["root"]], "both": [KEYS["root"], FRESH]}[who]
    server.rotate("root", FRESH, signers=signers)
    if code is None:
        found, _ = look(server)
        assert found.roles["root"].version == 2
        assert len(found.roles["root"].allowed) == 2
    else:
        assert refused(server) == code


def test_no_step_of_roots_is_skipped(server):
    """T32: version 3 in the place of 2, and 2 missing."""
    kept = accepted(server)
    server.new_root()
    second = server.files["metadata/2.root.json"]
    third = server.new_root()
    server.files["metadata/2.root.json"] = third
    assert refused(server, kept) == "index_rolled_back"
    del server.files["metadata/2.root.json"]
    assert look(server, kept)[0].roles["root"].version == 1
    server.files["metadata/2.root.json"] = second
    kept = accepted(server, kept)
    # Those that were seen are kept: a server that has them no more cannot take them back.
    del server.files["metadata/2.root.json"], server.files["metadata/3.root.json"]
    assert look(server, kept)[0].roles["root"].version == 3


def test_another_pinned_root_is_not_held_to_what_is_kept_of_the_last(server):
    kept = accepted(server)
    other = Repository(now=NOW, signers={name: [OTHER] for name in tuf_repositories.ROLES})
    other.put("plugins.json", INDEX)
    other.publish()
    found, _ = look(other, kept)
    assert found.roles["timestamp"].signers.isdisjoint(look(server, kept)[0].roles["timestamp"].signers)


# T33, T34
def test_threshold_counts_each_key_once(server):
    second = signer()
    server.rotate("timestamp", KEYS["timestamp"], second, threshold=2)
    server.publish()
    look(server)
    whole = server.files["metadata/timestamp.json"]
    edited(server, "timestamp.json", lambda raw: raw["signatures"].pop())
    assert refused(server) == "index_signature_invalid"
    edited(server, "timestamp.json", lambda raw: raw["signatures"].append(raw["signatures"][0]))
    assert refused(server) == "index_invalid"
    server.files["metadata/timestamp.json"] = whole
    # One that does not hold beside enough that do.
    edited(server, "timestamp.json", lambda raw: raw["signatures"].append({"keyid": "ab" * 32, "sig": "00" * 64}))
    look(server)


def twice(root):
    key = root.keys[root.roles["timestamp"].keyids[0]]
    again = copy.deepcopy(key)
    again.keyid = "ab" * 32
    root.keys[again.keyid] = again
    root.roles["timestamp"].keyids.append(again.keyid)
    root.roles["timestamp"].threshold = 2


def weak(root):
    key = root.keys[root.roles["timestamp"].keyids[0]]
    key.keyval["public"] = "01" + "00" * 31


def spaced(root):
    """The same bytes for whoever reads hex as Python does."""
    twice(root)
    values = root.keys["ab" * 32].keyval
    values["public"] = f"{values['public'][:2]} {values['public'][2:].upper()}"


def test_keys_that_count_twice_or_that_anybody_has_are_refused(server):
    """T33, T35"""
    for change in (twice, spaced, weak):
        other = copy.deepcopy(server)
        other.new_root(change)
        assert refused(other) == "index_invalid"


# T36, T38
def test_metadata_is_read_in_one_way_only(server):
    data = json.dumps(json.loads(server.files["metadata/timestamp.json"]), indent=7).encode()
    server.files["metadata/timestamp.json"] = data
    look(server)
    for broken in (
        data.replace(b'"version": 1', b'"version": 1, "version": 1', 1),
        data.replace(b'"_type"', b'"_type": "snapshot", "_type"', 1),
        b"\xef\xbb\xbf" + data,
        b"[" * 10_000,
        data[:-1],
    ):
        assert broken != data
        server.files["metadata/timestamp.json"] = broken
        assert refused(server) == "index_invalid"


def test_no_announced_length_makes_a_file_large(server):
    """T24, T25: whoever signs the timestamp may say that the snapshot is of any size."""
    server.timestamp.snapshot_meta.length = 1 << 40
    server.publish_timestamp()
    answers = {"2.root.json": None, "timestamp.json": server.files["metadata/timestamp.json"]}
    with pytest.raises(Wanted) as caught:
        TufRepository(server.root, {}, answers, now_s=NOW)
    assert (caught.value.name, caught.value.max_bytes) == ("1.snapshot.json", 8 << 20)


def test_host_without_python_tuf_says_what_to_install(monkeypatch):
    """And nothing but such a source imports it."""
    code = "import sys, latticed.app, latticed.market.market, latticed.market.tuf; sys.exit('tuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
    monkeypatch.delitem(sys.modules, "latticed.market.tuf_metadata")
    monkeypatch.delattr(market, "tuf_metadata")
    monkeypatch.setitem(sys.modules, "tuf.api", None)
    with pytest.raises(Problem) as caught:
        TufFormat(shelf=None, fetcher=None, seen=None, index_bytes=int, limit_s=float, now_s=int)
    assert (caught.value.code, "pip install 'latticed[tuf]'" in caught.value.hint) == ("tuf_missing", True)


# T17
@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_missing_metadata_is_a_problem(server, name):
    del server.files[f"metadata/{name}"]
    assert refused(server) == "fetch_missing"


def test_role_signs_what_is_delegated_to_it_alone(server):
    """T06: and it goes back no more than others."""
    server.delegate("acme.demo", "acme.demo/*", FRESH)
    server.put("acme.demo/artifact", b"x")
    server.publish()
    kept = accepted(server)
    assert "acme.demo.json" not in kept
    assert look(server, kept, path="acme.demo/artifact", offline=True)[1].length == 1
    signed, _ = server.delegated["acme.demo"]
    signed.targets["acme.other/artifact"] = signed.targets["acme.demo/artifact"]
    signed.targets["plugins.json"] = signed.targets["acme.demo/artifact"]
    server.publish()
    assert look(server, kept, path="acme.other/artifact")[1] is None
    look(server, kept)[1].check(io.BytesIO(INDEX))
    server.delegated["acme.demo"] = (signed, OTHER)
    server.publish()
    assert refused(server, kept, path="acme.demo/artifact") == "index_signature_invalid"


def test_no_delegated_role_takes_the_place_of_a_root(server):
    """A role may be called as the file of a root is."""
    server.rotate("timestamp", FRESH)
    server.delegate("2.root", "*", OTHER)
    server.publish()
    kept = accepted(server, path="revocations.json")
    assert kept["2.root.json"] == server.files["metadata/2.root.json"]
    found, target = look(server, kept, offline=True)
    assert (found.roles["root"].version, target.length) == (2, len(INDEX))


@pytest.mark.parametrize("patterns", [["*[" * 3_000], ["*p" * 9], ["p" * 257], ["p"] * 1_001])
def test_no_pattern_of_a_delegation_keeps_a_thread_busy(server, patterns):
    server.delegate("acme.demo", "*", FRESH)
    server.publish()
    look(server, path="revocations.json")
    server.targets.delegations.roles["acme.demo"].paths = patterns
    server.publish()
    assert refused(server, path="revocations.json") == "index_invalid"


async def test_all_metadata_of_a_refresh_is_bounded(server, tmp_path, monkeypatch):
    """Many roles, each of a size that is fine."""
    for number in range(20):
        server.delegate(f"role{number}", "*", FRESH)
        server.delegated[f"role{number}"][0].targets["x" * 5_000] = TargetFile.from_data("x" * 5_000, b"")
        server.targets.delegations.roles[f"role{number}"].terminating = False
    server.publish()
    for name, data in server.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    pinned = tmp_path / "root.json"
    pinned.write_bytes(server.root)
    source = sources.of("shop", SourceSettings(format="tuf", url=f"file://{tmp_path}", root=str(pinned)))
    form = TufFormat(
        shelf=MarketShelf(tmp_path / "state"),
        fetcher=Fetcher(lambda: 60.0),
        seen=None,
        index_bytes=lambda: 1 << 20,
        limit_s=lambda: 60.0,
        now_s=lambda: NOW,
    )
    monkeypatch.setattr(tuf, "_FETCHED_BYTES", 50_000)
    with pytest.raises(Problem) as caught:
        await form.refresh(source, NOW)
    assert caught.value.code == "fetch_too_large"
    assert not (tmp_path / "state").exists()


@pytest.fixture(scope="module")
def pristine():
    made = Repository(now=NOW)
    made.put("plugins.json", INDEX)
    made.publish()
    without_hashes(made)
    return made


PLAIN = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=5) | st.sampled_from([[], {}, {"a": []}, [{}]])
)


@given(data=st.data(), name=st.sampled_from(["timestamp", "1.snapshot", "1.targets"]), signed=st.booleans())
def test_no_bytes_make_anything_but_a_problem(pristine, data, name, signed):
    """One value of a file is another, signed or not: it is refused, or the same target is found."""
    raw = json.loads(pristine.files[f"metadata/{name}.json"])
    places = list(nested(raw))
    holder = data.draw(st.sampled_from(places))
    holder[data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))] = data.draw(
        PLAIN
    )
    if signed and isinstance(raw["signed"], dict):
        raw["signatures"] = [KEYS[name.rpartition(".")[2]].sign(canonical(raw["signed"])).to_dict()]
    server = copy.copy(pristine)
    server.files = {**pristine.files, f"metadata/{name}.json": json.dumps(raw).encode()}
    try:
        _, target = look(server)
        if target is not None:
            target.check(io.BytesIO(INDEX))
    except Problem as problem:
        assert problem.code.startswith(("index_", "fetch_", "digest_"))  # noqa: PT017


def nested(value):
    """Every object and list within a JSON value that is not empty."""
    if value and isinstance(value, dict | list):
        yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from nested(one)
