"""What latticed makes of its own plugins: identity, verdicts, and where their pairs are found."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest
import rfc8785

from latticed.bundle.refusal import BundleRefused
from latticed.catalog import builtins as catalog
from latticed.catalog.builtins import Builtins
from latticed.catalog.store import Store
from latticed.model.verdict import Refused, Verified
from latticed.trust import policy
from latticed.trust.policy import Revoked, TrustPolicy
from tests.house import builtins, bundles, catalogs
from tests.house.system.registry import SETS

VERSION = builtins.VERSION


def judged(builtin, *, version=VERSION, under=policy.NOBODY):
    ((_, verdict),) = Builtins([builtin], version=version).verdicts(lambda: under)
    return verdict


def test_digest_of_a_built_in_plugin_equals_that_of_sha256sum(tmp_path):
    """Anybody can compute the documented form again from an installed package."""
    made = builtins.made(tmp_path)
    (made.folder / "sub").mkdir()
    (made.folder / "sub" / "more.py").write_text("more\n")
    (made.folder / "__pycache__").mkdir()
    (made.folder / "__pycache__" / "plugin.cpython-311.pyc").write_text("varies\n")
    script = "find . -type f -not -path '*/__pycache__/*' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    found = subprocess.run(["sh", "-c", script], cwd=made.folder, capture_output=True, text=True, check=True)
    assert judged(made).artifact_sha256 == found.stdout.split()[0]


def test_identity_of_a_built_in_plugin_covers_manifest_version_and_files(tmp_path):
    """It is the SHA-256 of the signing payload of the completed manifest, as that of a bundle."""
    made = builtins.made(tmp_path)
    found = judged(made)
    plain = json.loads((made.folder / "manifest.json").read_bytes())
    whole = {**plain, "version": VERSION, "publisher": "latticed", "digest_sha256": found.artifact_sha256}
    assert found.identity == hashlib.sha256(b"LATTICED-MANIFEST-V2\n" + rfc8785.dumps(whole)).hexdigest()
    assert judged(made).identity == found.identity
    assert judged(made, version="1.2.4").identity != found.identity
    (made.folder / "plugin.py").write_text("other\n")
    assert judged(made).identity != found.identity
    builtins.made(tmp_path)
    assert judged(made).identity == found.identity
    (made.folder / "plugin.py").rename(made.folder / "plugins.py")
    assert judged(made).identity != found.identity


def test_built_in_plugin_verifies_without_policy_and_key(tmp_path):
    """Whoever could change it could change the daemon as well."""
    found = judged(builtins.made(tmp_path))
    assert isinstance(found, Verified)
    assert (found.manifest.publisher, found.manifest.version, found.key) == ("latticed", VERSION, "")


@pytest.mark.parametrize("entry", ["latticed.demo@*", f"latticed.demo@{VERSION}"])
def test_built_in_plugin_can_be_revoked(tmp_path, entry):
    made = builtins.made(tmp_path)
    found = judged(made, under=TrustPolicy(revoked=Revoked(plugins=frozenset({entry}))))
    assert (found.code, found.manifest.id) == ("plugin_revoked", "latticed.demo")
    assert isinstance(judged(made, under=TrustPolicy(revoked=Revoked(plugins=frozenset({"latticed.x@*"})))), Verified)
    digest = judged(made).artifact_sha256
    assert judged(made, under=TrustPolicy(revoked=Revoked(digests=frozenset({digest})))).code == "digest_revoked"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": "acme.demo"}, "manifest_invalid"),
        ({"id": "latticed.."}, "manifest_invalid"),
        ({"publisher": "latticed"}, "manifest_invalid"),
        ({"version": "9.9.9"}, "manifest_invalid"),
        ({"signature_ed25519": "AA=="}, "manifest_invalid"),
        ({"digest_sha256": "0" * 64}, "manifest_invalid"),
        ({"type": "worker", "capabilities": ["kv:read"]}, "manifest_invalid"),
        ({"schema": None}, "manifest_invalid"),
        ({"capabilities": ["no:such"]}, "unknown_capability"),
        ({"unknown": 1}, "manifest_invalid"),
        ({"requires_host": ">=99.0.0"}, "host_incompatible"),
    ],
)
def test_invalid_manifest_of_a_built_in_plugin_is_refused(tmp_path, fields, code):
    """It is decoded as strictly as that of a bundle."""
    assert judged(builtins.made(tmp_path, **fields)).code == code


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"id": 1, "id": 2}', b"\xff"])
def test_manifest_of_a_built_in_plugin_that_is_no_json_is_refused(tmp_path, data):
    made = builtins.made(tmp_path)
    (made.folder / "manifest.json").write_bytes(data)
    assert judged(made).code == "manifest_invalid_json"


def test_built_in_package_without_manifest_is_refused(tmp_path):
    made = builtins.made(tmp_path)
    (made.folder / "manifest.json").unlink()
    assert judged(made).code == "manifest_missing"


def test_built_in_plugin_of_a_version_that_is_not_semver_is_refused(tmp_path):
    """Versions in manifests of version 2 have an order, which a floor needs."""
    assert judged(builtins.made(tmp_path), version="1.2.3.dev4+g1").code == "manifest_invalid"


def test_two_built_in_plugins_of_one_id_raise_value_error(tmp_path):
    one, other = builtins.made(tmp_path / "a"), builtins.made(tmp_path / "b")
    with pytest.raises(ValueError, match="once"):
        Builtins([one, other], version=VERSION)


@pytest.mark.parametrize("fields", [{"id": "latticed.demo"}, {"publisher": "latticed"}], ids=str)
@pytest.mark.parametrize("v2", [False, True])
async def test_bundle_with_a_reserved_id_or_publisher_is_refused(tmp_path, fields, v2):
    """It is, in every plugin directory, whoever signed it."""
    author = bundles.author()
    bundles.drop(tmp_path / "plugins", author=author, v2=v2, **fields)
    store = Store(tmp_path / "store", builtins=Builtins([builtins.made(tmp_path / "own")], version=VERSION))
    async with catalogs.watching(tmp_path / "plugins", author, store=store) as seen:
        assert {name: seen.code(name) for name in seen.now} == {
            "plugins/demo": "manifest_invalid",
            "system/demo": "verified",
        }


async def test_policy_change_judges_built_in_plugins_again(tmp_path):
    """Only changed verdicts are reported, as for bundles."""
    trusted = [policy.NOBODY]
    (tmp_path / "plugins").mkdir()
    store = Store(tmp_path / "store", builtins=Builtins([builtins.made(tmp_path / "own")], version=VERSION))
    async with catalogs.watching(tmp_path / "plugins", policy=lambda: trusted[0], store=store) as seen:
        (identity,) = seen.told("system/demo")
        seen.catalog.rescan()
        trusted[0] = TrustPolicy(revoked=Revoked(plugins=frozenset({"latticed.demo@*"})))
        seen.catalog.rescan()
        await catalogs.until(lambda: seen.code("system/demo") == "plugin_revoked", "the revocation")
        trusted[0] = policy.NOBODY
        seen.catalog.rescan()
        await catalogs.until(lambda: seen.code("system/demo") == "verified", "its end")
        assert seen.told("system/demo") == [identity, "plugin_revoked", identity]


def test_store_finds_the_pair_of_a_built_in_plugin(tmp_path):
    """It is verified, opened and listed as a stored pair is; nothing is written to the store."""
    made = Builtins([builtins.made(tmp_path)], version=VERSION)
    store = Store(tmp_path / "store", builtins=made)
    (identity,) = store.identities()
    assert isinstance(store.verify(identity, policy.NOBODY, host_version=VERSION), Verified)
    with store.open(identity) as pair:
        assert json.loads(pair.manifest())["id"] == "latticed.demo"
        sha256, size = pair.hash_artifact()
    found = store.verify(identity, policy.NOBODY, host_version=VERSION, sha256="0" * 64)
    assert (found.artifact_sha256, found.artifact_bytes) == (sha256, size)
    assert store.collect([]) == 0
    assert not (tmp_path / "store").exists()
    assert isinstance(store.verify("0" * 64, policy.NOBODY, host_version=VERSION), Refused)
    with pytest.raises(BundleRefused):
        store.open("0" * 64)


def test_artifact_of_a_built_in_plugin_is_the_list_of_its_files(tmp_path):
    """Copying the artifact writes this list."""
    made = Builtins([builtins.made(tmp_path)], version=VERSION)
    (identity,) = made.identities()
    with (tmp_path / "copy").open("wb") as file:
        made.pair(identity).copy_artifact(file.fileno())
    assert (tmp_path / "copy").read_bytes() == catalog.listing(tmp_path / "demo")
    assert (tmp_path / "copy").read_text().splitlines()[0].endswith("  manifest.json")


def test_eight_built_in_plugins_of_the_tests_verify():
    """latticed is to have as many; their cost is measured with these."""
    found = dict(Builtins(SETS["eight"], version=VERSION).verdicts(lambda: policy.NOBODY))
    assert len(found) == 8
    assert all(isinstance(verdict, Verified) for verdict in found.values())
