"""Configurations of Sub-Store: what is refused, by the schema or by the plugin, and what the host is asked for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed import system
from latticed.host.program.spec import ProgramPut
from latticed.host.route import public_paths
from latticed.model.errors import Problem
from latticed.system.sub_store import check, render

GOOD = {"bundle": "/opt/sub-store/2.14.0/sub-store.bundle.js", "login": "${secret:SUB_STORE_LOGIN}"}
MANIFEST = json.loads((Path(system.__file__).parent / "sub_store" / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"bundle": "sub-store.bundle.js"}, "bundle: expected an absolute path"),
        ({"bundle": "/opt/../etc/passwd"}, "bundle: expected an absolute path"),
        ({"bundle": "/opt//x.js"}, "bundle: expected an absolute path"),
        ({"bundle": "/opt/x\n.js"}, "bundle: expected an absolute path"),
        ({"frontend": "dist"}, "frontend: expected an absolute path"),
        ({"frontend": "/opt/front", "prefix": ""}, "frontend: expected a prefix too"),
        ({"login": ""}, "login: expected a reference"),
        ({"login": "hunter2hunter2"}, "login: expected a reference"),
        ({"login": "${secret:lower}"}, "login: expected a reference"),
        ({"login": "x${secret:A}"}, "login: expected a reference"),
        ({"token": "s3cret-s3cret-s3cret"}, "token: expected a reference"),
        ({"token": GOOD["login"]}, "token: expected another secret"),
        ({"program": "../node"}, "program: expected a name"),
        ({"port": 80}, "port: expected 1024 to 65535"),
        ({"port": 65_536}, "port: expected 1024 to 65535"),
        ({"port": "3000"}, "port"),
        ({"path": "sub/"}, "path: expected /"),
        ({"path": "/sub"}, "path: expected /"),
        ({"path": "/../"}, "path: expected /"),
        ({"path": "/a%2fb/"}, "path: expected /"),
        ({"prefix": "backend"}, "prefix: expected nothing or a path"),
        ({"prefix": "/backend/"}, "prefix: expected nothing or a path"),
        ({"prefix": "/.."}, "prefix: expected nothing or a path"),
        ({"prefix": "/*"}, "prefix: expected nothing or a path"),
        ({"hosts": ["sub.example.org"]}, "hosts[0]: expected host:port"),
        ({"hosts": ["https://sub.example.org/"]}, "hosts[0]: expected host:port"),
        ({"hosts": ["a.example:443", "*"]}, "hosts[1]: expected host:port"),
        ({"environment": {"NODE_OPTIONS": "--require=/data/x.js"}}, "environment: expected names that begin with"),
        ({"environment": {"SUB_STORE_\n": "x"}}, "environment: expected names that begin with"),
        ({"environment": {"SUB_STORE_BACKEND_API_HOST": "0.0.0.0"}}, "does not set itself"),
        ({"environment": {"SUB_STORE_DATA_BASE_PATH": "/scratch"}}, "does not set itself"),
        ({"environment": {"SUB_STORE_CORS_ALLOWED_ORIGINS": "*"}}, "does not set itself"),
        ({"environment": {"SUB_STORE_BACKEND_DEFAULT_PROXY": "http://10.0.0.1:1"}}, "does not set itself"),
        ({"environment": {"SUB_STORE_PUSH_SERVICE": "https://x/${secret:PUSH}"}}, "no secret"),
        ({"environment": {"SUB_STORE_X": "a\x00b"}}, "visible characters"),
        ({"data_bytes": 0}, "data_bytes: expected"),
        ({"data_files": 1}, "data_files: expected"),
        ({"secret_path": "/x"}, "unknown field"),
    ],
)
def test_configuration_that_cannot_be_meant_is_refused_by_the_name_of_its_field(change, word):
    with pytest.raises(Problem) as caught:
        check.read({**GOOD, **change})
    assert word in caught.value.reason
    assert "hunter2" not in caught.value.reason
    assert "s3cret" not in caught.value.reason


def test_all_faults_are_told_at_once():
    with pytest.raises(Problem) as caught:
        check.read({"bundle": "x", "login": "", "port": 1, "hosts": ["y"]})
    assert [one.partition(":")[0] for one in caught.value.reason.split("; ")] == ["login", "bundle", "port", "hosts[0]"]


@pytest.mark.parametrize(
    "bad", [{}, {"bundle": "/x.js"}, {**GOOD, "more": 1}, {**GOOD, "port": 80}, {**GOOD, "data_bytes": 1}]
)
def test_schema_refuses_what_has_the_wrong_form(bad):
    """Before it is stored, with the place."""
    validator = jsonschema_rs.Draft202012Validator(MANIFEST["config"])
    assert not validator.is_valid(bad)
    assert validator.is_valid(GOOD)


def test_service_and_route_are_what_the_host_takes():
    """Defaults: in a network of its own, no secret in the environment, the login in front, nothing public."""
    intent = check.read(GOOD)
    put = render.service(intent)
    assert set(put) - {"hosts"} <= set(ProgramPut.__struct_fields__)
    assert put["network"] == "own"
    assert put["args"] == [GOOD["bundle"]]
    assert put["environment"] == {
        "SUB_STORE_BACKEND_API_HOST": "127.0.0.1",
        "SUB_STORE_BACKEND_API_PORT": "3000",
        "SUB_STORE_BACKEND_PREFIX": "1",
        "SUB_STORE_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:3000",
        "SUB_STORE_DATA_BASE_PATH": "/data",
        "SUB_STORE_FRONTEND_BACKEND_PATH": "/backend",
    }
    assert "secret" not in json.dumps(put)
    route = render.route(intent)
    assert (route["login"], route.get("public"), route.get("token")) == (GOOD["login"], None, None)


def test_token_opens_downloads_and_nothing_else():
    intent = check.read({**GOOD, "token": "${secret:SUB_STORE_TOKEN}", "path": "/"})
    route = render.route(intent)
    assert (route["path"], route["token"]) == ("/", "${secret:SUB_STORE_TOKEN}")
    assert all(public_paths.fault(one) is None for one in route["public"])
    opened = {
        path: public_paths.is_public(tuple(route["public"]), path)
        for path in (
            "/backend/download/mine/Clash",
            "/backend/download/collection/all",
            "/backend/api/utils/env",
            "/backend/api/a/b",
            "/download/mine/Clash",
            "/backend/download/mine",
            "/backend/share/a/b",
            "/",
        )
    }
    assert [path for path, is_open in opened.items() if is_open] == [
        "/backend/download/mine/Clash",
        "/backend/download/collection/all",
    ]


def test_backend_of_before_the_prefix_gets_none():
    intent = check.read(
        {**GOOD, "prefix": "", "token": "${secret:T}", "environment": {"SUB_STORE_BODY_JSON_LIMIT": "2mb"}}
    )
    environment = render.service(intent)["environment"]
    assert not {"SUB_STORE_BACKEND_PREFIX", "SUB_STORE_FRONTEND_BACKEND_PATH"} & set(environment)
    assert environment["SUB_STORE_BODY_JSON_LIMIT"] == "2mb"
    assert render.route(intent)["public"] == ["/download/*/*"]
    assert render.probe(intent)["url"] == "http://127.0.0.1:3000/api/utils/env"


# What the backend answers.


@pytest.mark.parametrize(
    ("status", "body", "version", "word"),
    [
        (200, b'{"status":"success","data":{"backend":"Node","version":"2.14.0"}}', "2.14.0", ""),
        (200, b'{"status":200,"backend":"Node"}', "", ""),
        (200, b'{"data":{"backend":"Node","version":7}}', "", ""),
        (200, b'{"data":{"backend":"Node","version":"1\\n2"}}', "", ""),
        (404, b"{}", "", "answers 404"),
        (200, b"<html>", "", "no JSON"),
        (200, b"\xff", "", "no JSON"),
        (200, b"[" * 100_000, "", "no JSON"),
        (200, b"[]", "", "names no backend"),
        (200, b'{"data":[]}', "", "names no backend"),
        (200, b'{"data":{"backend":{}}}', "", "names no backend"),
    ],
)
def test_answer_of_the_backend_is_read_strictly(status, body, version, word):
    found = render.answer(status, body)
    assert found.version == version
    assert word in found.fault
    assert bool(found.fault) == bool(word)


@given(status=st.integers(), body=st.binary(max_size=200))
def test_no_answer_of_the_backend_raises(status, body):
    found = render.answer(status, body)
    assert found.fault or status == 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from([*GOOD, "port", "hosts", "environment"]) | st.text(), inner)
        ),
        max_leaves=10,
    )
)
def test_no_configuration_raises_anything_but_a_problem(plain):
    with contextlib.suppress(Problem):
        check.read(plain)
