"""Host calls about how the host is reached: route, network, ddns."""

from __future__ import annotations

from latticed.sdk.calls import Calls, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from latticed.sdk import answers


class Route(Calls):
    """HTTP paths of this plugin, below /<plugin id>/ unless the operator granted another prefix."""

    def put(  # noqa: PLR0913 - the fields of route.put
        self,
        path: str,
        target: answers.RouteTarget,
        *,
        template: str | None = None,
        content_type: str | None = None,
        action: str | None = None,
        methods: Sequence[str] | None = None,
        folder: str | None = None,
        plugin: str | None = None,
        origin: str | None = None,
        service: str | None = None,
        login: str | None = None,
        public: Sequence[str] | None = None,
        token: str | None = None,
    ) -> answers.RoutePutAnswer:
        """Answer `path` and what is below it from now on, in place of the plugin's route there (worker:route).

        `template` (with `template`, `content_type`): a text by the rules of docs/write/workers.md. `invoke` (`action`,
        `methods`): an action of this plugin. `static` (`folder`, `plugin`): published files. `service` (`origin`,
        `service`, `login`, `public`, `token`): a service behind a login. docs/write/services.md has each.

        Errors: bad_params names the field, also for a path of another plugin (the message begins with `route_taken`);
        egress_blocked for an origin that was not bound; quota_exceeded for too many.
        Limits: 32 routes and 1 MiB of templates.
        """
        more = given(
            template=template,
            content_type=content_type,
            action=action,
            methods=None if methods is None else [*methods],
            folder=folder,
            plugin=plugin,
            origin=origin,
            service=service,
            login=login,
            public=None if public is None else [*public],
            token=token,
        )
        found: answers.RoutePutAnswer = self._ask("route.put", {"path": path, "target": target, **more})
        return found

    def delete(self, path: str) -> answers.Ok:
        """Remove the route at `path`; `ok`: whether there was one (worker:route).

        Errors: those of every call.
        """
        found: answers.Ok = self._ask("route.delete", {"path": path})
        return found


class Network(Calls):
    """Changes to the host's network as plans: proposed here, approved by an operator, then applied by the root helper.

    What is not confirmed in time is undone.
    """

    def state(self, kind: answers.StateKind) -> answers.NetworkStateAnswer:
        """What is live now of `kind`: nft, wireguard, nginx, proxy, listeners or interfaces (network:plan).

        Errors: service_unavailable while the root helper does not run, for nft, wireguard and proxy, which it sees.
        """
        found: answers.NetworkStateAnswer = self._ask("network.state", {"kind": kind})
        return found

    def plan(self, kind: answers.PlanKind, intent: Mapping[str, Any]) -> answers.NetworkPlanAnswer:
        """Propose a change; `code` and `reason` say why the root helper did not take it yet (network:plan).

        To plan the same again is the same plan. `intent` is JSON without fractions; a secret in it is `${secret:NAME}`.

        Errors: bad_params for what the kind finds fault with, with each fault; quota_exceeded when all are open.
        Limits: an intent of 256 KiB; 100 plans of a plugin.
        """
        found: answers.NetworkPlanAnswer = self._ask("network.plan", {"kind": kind, "intent": dict(intent)})
        return found

    def plans(
        self, sha256: str | None = None, *, after: int | None = None, limit: int | None = None
    ) -> answers.NetworkPlansAnswer:
        """A page of this plugin's plans, oldest first, without intents; or one of them with its intent (network:plan).

        `after` is the `next` of the page before.

        Errors: not_found for a `sha256` that is none of its plans.
        """
        found: answers.NetworkPlansAnswer = self._ask("network.plans", given(sha256=sha256, after=after, limit=limit))
        return found

    def apply(self, sha256: str) -> answers.NetworkApplyAnswer:
        """Begin to apply what an operator approved, or what only takes away from it (network:apply).

        It answers `applying` at once; `plans` says what became of it.

        Errors: not_found; service_unavailable when it was not begun, with the root helper's code: `nothing was applied:
        not_approved: …`.
        """
        found: answers.NetworkApplyAnswer = self._ask("network.apply", {"sha256": sha256})
        return found


class Ddns(Calls):
    """DNS records that follow this machine's addresses."""

    def put(  # noqa: PLR0913 - the fields of ddns.put
        self,
        name: str,
        type: answers.RecordType,  # noqa: A002 - its name
        provider: answers.DdnsProvider,
        secret: str,
        *,
        address: str | None = None,
        interface: str | None = None,
        ttl: int | None = None,
        zone: str | None = None,
        server: str | None = None,
        key: str | None = None,
        algorithm: str | None = None,
        retry: bool | None = None,
    ) -> answers.DdnsPutAnswer:
        """Keep a DNS record up to date from now on; returns before the provider is asked (ddns:admin).

        `secret` is `${secret:NAME}`, an API token or a TSIG key; either `address` or `interface` is given. `server`,
        `key` and `algorithm` are for rfc2136. `retry`: try again what the provider denied.

        Errors: bad_params names the field, also for a record of another plugin; quota_exceeded for too many.
        Limits: `ddns.plugin_records` (16); `ttl` 60 to 86,400 seconds, or 1: automatic.
        """
        more = given(
            address=address,
            interface=interface,
            ttl=ttl,
            zone=zone,
            server=server,
            key=key,
            algorithm=algorithm,
            retry=retry,
        )
        params = {"name": name, "type": type, "provider": provider, "secret": secret, **more}
        found: answers.DdnsPutAnswer = self._ask("ddns.put", params)
        return found

    def delete(self, name: str, *, type: answers.RecordType | None = None) -> answers.Ok:  # noqa: A002 - its name
        """Stop updating the records of `name`, or that of one type; `ok`: whether there was one (ddns:admin).

        They stay at the provider as they are.

        Errors: bad_params for what is no name.
        """
        found: answers.Ok = self._ask("ddns.delete", given(name=name, type=type))
        return found

    def status(self, name: str | None = None, *, type: answers.RecordType | None = None) -> answers.DdnsStatusAnswer:  # noqa: A002 - its name
        """State and last error of the records of `name`, or of all (ddns:admin).

        Errors: bad_params for what is no name.
        """
        found: answers.DdnsStatusAnswer = self._ask("ddns.status", given(name=name, type=type))
        return found
