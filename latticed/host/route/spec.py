"""The parameters of route.put checked into a RouteSpec, and that to and from the ledger (pure)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

from latticed.host.call import HostError, Params
from latticed.host.program.spec import NAME
from latticed.host.route import own_style, public_paths, rendering, template
from latticed.host.route import table as prefixes
from latticed.host.secret.references import REFERENCE
from latticed.kit import text
from latticed.model import egress, ids, published
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.model.egress import Origin

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
"""The HTTP methods that an invoke route may take."""
_ACTION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# Unreserved characters only (RFC 3986, section 2.3): the prefix is compared with paths that are still encoded, and
# written into Location and Set-Cookie as it is.
_SERVICE_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~-]+/)*", re.ASCII)
_SECRET_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PARAMETERS_OF: Final = {
    "template": ("template", "content_type"),
    "invoke": ("action", "methods"),
    "service": ("origin", "service", "login", "public", "token"),
    "static": ("folder", "plugin"),
}
"""The parameters that go with each target."""


class RoutePut(Params, frozen=True):
    """Parameters of route.put."""

    path: str
    """Where it answers: below `/ID/`, or a prefix that was granted."""
    target: Literal["template", "invoke", "service", "static"]
    """What answers."""
    template: str = ""
    """template: the text, rendered in one pass."""
    content_type: str = ""
    """template: the Content-Type of answers; empty: text/plain."""
    action: str = ""
    """invoke: the action of the plugin that answers."""
    methods: tuple[str, ...] = ()
    """invoke: methods that are taken; empty: GET and HEAD."""
    origin: str = ""
    """service: `http://host:port`, or `http://host:port=ADDRESS`."""
    service: str = ""
    """service: the plugin's service in whose own network the origin is; empty: none."""
    login: str = ""
    """service: `${secret:NAME}` of a password (`secret set --password`) that visitors have to give."""
    public: tuple[str, ...] = ()
    """service: patterns of paths that need no login."""
    token: str = ""
    """service: `${secret:NAME}`; the public paths are open only with `?token=` and this value."""
    folder: str = ""
    """static: where in the published files."""
    plugin: str = ""
    """static: whose files; empty: the caller's."""


class RouteSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One route as it is stored. `path` ends with a slash; `login` and `token` are names of secrets, without
    `${secret:}`; `origin` is in the normal form of `model.egress`; `folder` is empty or ends with a slash. Parameters
    of other targets are empty.
    """

    path: str
    target: Literal["template", "invoke", "service", "static"]
    template: str = ""
    content_type: str = ""
    action: str = ""
    methods: tuple[str, ...] = ()
    origin: str = ""
    service: str = ""
    login: str = ""
    public: tuple[str, ...] = ()
    token: str = ""
    folder: str = ""
    plugin: str = ""

    @property
    def parsed_origin(self) -> Origin:
        """The origin of a `service` route, parsed; ValueError for other routes, which have none."""
        return egress.origin(self.origin)


def checked(asked: RoutePut) -> RouteSpec:
    """The spec; HostError bad_params.

    Parses a template of up to 256 KiB, so callers run it in a thread. Whether the path is free is left to the route
    table, whether origin and secret may be used to the keeper.
    """
    # A parameter of another target is an error: if it were ignored, `public` of a template would seem to work.
    for kind, names in _PARAMETERS_OF.items():
        if kind != asked.target and (odd := [name for name in names if getattr(asked, name)]):
            raise _bad(f"{odd[0]}: goes with the target {kind}, found {asked.target}")
    path = prefixes.normalised(asked.path)
    if fault := prefixes.prefix_fault(path):
        raise _bad(f"path: {fault}")
    match asked.target:
        case "template":
            return _template_spec(asked, path)
        case "invoke":
            return _invoke_spec(asked, path)
        case "static":
            return _static_spec(asked, path)
        case _:
            return _service_spec(asked, path)


def encoded(spec: RouteSpec) -> str:
    """A spec as it is stored in a row of the ledger: JSON."""
    return msgspec.json.encode(spec).decode("utf-8")


def decoded(stored: str) -> RouteSpec:
    """What `encoded` returned. ValueError (msgspec.DecodeError) when the row is damaged."""
    return msgspec.json.decode(stored, type=RouteSpec)


def _template_spec(asked: RoutePut, path: str) -> RouteSpec:
    """The spec of a template route. HostError bad_params, also for a template that does not parse."""
    try:
        content_type = rendering.content_type(asked.content_type or "text/plain", "content_type")
        own_style.of_template(template.parse(asked.template.encode("utf-8")).parts, content_type)
    # JSON can escape a lone surrogate (RFC 8259, section 8.2); UTF-8 cannot encode it.
    except UnicodeEncodeError as error:
        raise _bad("template: expected text without lone surrogates") from error
    except Problem as problem:
        raise _bad(f"{problem.code}: {problem.reason}") from problem
    # After `parse`, which takes an empty text.
    if not asked.template:
        raise _bad("template: expected some text, found none")
    return RouteSpec(path=path, target="template", template=asked.template, content_type=content_type)


def _invoke_spec(asked: RoutePut, path: str) -> RouteSpec:
    """The spec of a route to an action; without `methods`, GET and HEAD. HostError bad_params."""
    if not _ACTION.fullmatch(asked.action):
        raise _bad("action: expected 1 to 128 of A-Z a-z 0-9 . _ : -, first a letter or digit")
    # `dict.fromkeys` removes duplicates and keeps the order, so that the same call is stored as the same JSON.
    methods = tuple(dict.fromkeys(asked.methods)) or ("GET", "HEAD")
    if unknown := [one for one in methods if one not in METHODS]:
        raise _bad(f"methods: expected some of {', '.join(METHODS)}, found {_shown(unknown[0])}")
    return RouteSpec(path=path, target="invoke", action=asked.action, methods=methods)


def _static_spec(asked: RoutePut, path: str) -> RouteSpec:
    """The spec of a route to published files. HostError bad_params; whether they may be read is left to the keeper."""
    folder = asked.folder.removesuffix("/")
    if folder and (fault := published.path_fault(folder)):
        raise _bad(f"folder: {fault}")
    if asked.plugin and not ids.is_valid(asked.plugin):
        raise _bad(f"plugin: expected the id of a plugin, found {_shown(asked.plugin)}")
    return RouteSpec(path=path, target="static", folder=f"{folder}/" if folder else "", plugin=asked.plugin)


def _service_spec(asked: RoutePut, path: str) -> RouteSpec:
    """The spec of a proxied route, its origin in normal form. HostError bad_params."""
    if not _SERVICE_PATH.fullmatch(path):
        raise _bad("path: expected segments of A-Z a-z 0-9 . _ ~ - for a service")
    try:
        bound = egress.origin(asked.origin)
    except ValueError as error:
        raise _bad(f"origin: {error}") from error
    # The proxy speaks plain HTTP to services, see `Proxy.url`.
    if bound.scheme != "http":
        raise _bad(f"origin: expected http://host:port[=address], found the scheme {bound.scheme}")
    if asked.service:
        if not NAME.fullmatch(asked.service):
            raise _bad(f"service: expected the name of a service, found {_shown(asked.service)}")
        # In there it is the service's own; on the host it is whoever listens, which a grant has to allow.
        if str(bound) not in {f"http://127.0.0.1:{bound.port}", f"http://[::1]:{bound.port}"}:
            raise _bad("origin: expected http://127.0.0.1:port or http://[::1]:port in the network of a service")
    login, token = _secret_name("login", asked.login), _secret_name("token", asked.token)
    # Without both the route would answer nothing at all.
    if not asked.login and not asked.public:
        raise _bad("login: expected a password as ${secret:NAME}; without one only the paths in `public` are served")
    if len(asked.public) > public_paths.MAX_PATTERNS:
        raise _bad(f"public: expected at most {public_paths.MAX_PATTERNS} patterns, found {len(asked.public)}")
    for pattern in asked.public:
        if fault := public_paths.fault(pattern):
            raise _bad(f"public: {fault}")
    if token and not asked.public:
        raise _bad("token: expected the paths that it opens in `public`, found none")
    return RouteSpec(
        path=path,
        target="service",
        origin=str(bound),
        service=asked.service,
        login=login,
        public=asked.public,
        token=token,
    )


def _secret_name(what: str, value: str) -> str:
    """The name in a reference `${secret:NAME}`, empty for an empty text. HostError bad_params names the parameter."""
    # A reference, not the value itself: the spec is stored in the ledger.
    reference = REFERENCE.fullmatch(value)
    if value and (reference is None or not _SECRET_NAME.fullmatch(reference[1])):
        raise _bad(f"{what}: expected a reference such as ${{secret:NAME}}, found something else")
    return reference[1] if reference else ""


def _bad(message: str) -> HostError:
    return HostError(Denial.BAD_PARAMS, message)


def _shown(value: Any) -> str:
    return repr(text.sanitise(str(value), 40))
