"""The OpenAPI document is true: schemathesis sends valid and invalid requests from it to the real daemon."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from latticed import __version__
from latticed.rpc import openapi, routes
from tests.house import bundles, daemons, long, unix_session

pytestmark = pytest.mark.daemon

ACME = bundles.author("acme")
IDS = ("acme.one", "acme.two", "acme.none")
DOCUMENT = openapi.document(routes.ROUTES, __version__)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
ENDLESS = "/api/events"
OPERATIONS = [one for found in SCHEMA.get_all_operations() if (one := found.ok()).path != ENDLESS]
ASKED = [(one, GenerationMode.POSITIVE) for one in OPERATIONS] + [
    (one, GenerationMode.NEGATIVE) for one in OPERATIONS if one.body or one.query or one.path_parameters
]
PROMISES = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)


@pytest.fixture(scope="module")
def daemon():
    with daemons.placed() as place:
        place.trust_us(ACME)
        for plugin_id in IDS[:2]:
            place.drop(plugin_id, author=ACME, id=plugin_id, capabilities=["kv:read", "http:egress"])
        bundles.tamper(place.drop("broken", author=ACME, id="acme.broken").artifact_path)
        with place.running() as daemon:
            daemon.until(lambda: daemon.plugin(IDS[1]), "the bundles to be seen")
            yield daemon


@pytest.fixture
def session(daemon):
    with unix_session.opened(daemon.place.socket) as session:
        yield session


def aimed(case: Case, plugin_id: str | None) -> Case:
    """`case` with the id of an existing plugin: generated ids hardly ever match one."""
    if plugin_id is not None and "id" in case.path_parameters:
        case.path_parameters["id"] = plugin_id
    if plugin_id is not None and isinstance(case.body, dict) and "id" in case.body:
        case.body["id"] = plugin_id
    if isinstance(case.query, dict) and case.query.get("wait_s") in range(1, 31):
        case.query["wait_s"] = 0  # do not wait: the schema of the answer is the same
    return case


@pytest.mark.parametrize(("operation", "mode"), ASKED, ids=lambda one: getattr(one, "label", one))
def test_answers_match_the_openapi_description(daemon, session, operation, mode):
    """Requests fit the schema or break it: no 5xx, a documented status, a body that fits its schema."""
    cases = st.builds(aimed, operation.as_strategy(generation_mode=mode), st.sampled_from([None, *IDS]))

    @settings(
        max_examples=long.times(10, 100),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def holds(case: Case) -> None:
        answer = case.call(session=session, base_url=unix_session.ADDRESS)
        case.validate_response(answer, checks=PROMISES)

    holds()
    assert daemon.process.poll() is None


def test_openapi_document_is_served_and_valid(daemon):
    """`GET /openapi.json` is made of the table of routes, and valid OpenAPI 3.1."""
    served = daemon.get("/openapi.json")
    assert (served.status, served.json()) == (200, json.loads(json.dumps(DOCUMENT)))
    SCHEMA.validate()


def test_openapi_document_describes_every_route_with_its_scope():
    """It has method, path, scope, parameters, body and answer."""
    described = {
        (method.upper(), path): operation
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
    }
    assert set(described) == {(route.method, route.path) for route in routes.ROUTES}
    for route in routes.ROUTES:
        operation = described[route.method, route.path]
        assert operation["summary"]
        assert operation["x-scope"] == str(route.scope.name).lower()
        assert ("requestBody" in operation) == (route.form.body is not None)
        taken = {one["name"] for one in operation["parameters"] if one["in"] == "query"}
        assert taken == set(route.form.query.__struct_fields__)


@pytest.mark.parametrize("query", ["after=x", "after=-1", "since=x", "host_calls=yes", "after=1&after=2", "until=3"])
def test_invalid_stream_request_is_400(daemon, query):
    """The route never ends, and so is not requested above."""
    answer = daemon.get(f"/api/events?{query}")
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "%ff", "%00", "1e9"])
def test_times_beyond_the_calendar_give_no_5xx(daemon, since):
    assert daemon.get(f"/api/audit?since={since}").status in {200, 400}
