"""The shapes of requests to the marketplace and of its answers. See `responses`."""

from __future__ import annotations

from typing import Annotated, TypedDict

from msgspec import Meta

from latticed.rpc.api import Body, QueryParams

Text = Annotated[str, Meta(max_length=256)]


class RefreshSource(Body, frozen=True):
    """`source`: this one; all of them when it is empty."""

    source: Text = ""


class MarketSearch(QueryParams, frozen=True):
    """Plugins whose id, name or summary has `text`, sorted by id; `after`: the `next` of the previous page."""

    text: Text = ""
    source: Text = ""
    after: Text = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class MarketChoice(QueryParams, frozen=True):
    """Which release: a version, or a channel's newest (the stable one where neither is named). `accept`: what is
    consented to by name, separated by spaces (contracts §8).
    """

    source: Text = ""
    version: Text = ""
    channel: Text = ""
    accept: Annotated[str, Meta(max_length=16_384)] = ""
    accept_age: Text = ""
    accept_held: bool = False


class MarketInstall(Body, frozen=True):
    """`accept` has capabilities and hosts (`host=…`) that are consented to by name; `accept_age` names the version that
    is taken before its age, `accept_held` takes one of a held plugin.
    """

    id: Text
    source: Text = ""
    version: Text = ""
    channel: Text = ""
    accept: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    accept_hosts: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    accept_age: Text = ""
    accept_held: bool = False
    allow_downgrade: bool = False


class MarketImport(Body, frozen=True):
    """`name`: of a file in `market.import_dir`, a tar of `manifest.json` and `artifact`. `sha256` of the file, and
    `identity`, `id`, `publisher` and `versions` (a range such as `^1.2`) of the bundle have to be these where they are
    given; the rest as for an install.
    """

    name: Annotated[str, Meta(max_length=255)]
    sha256: Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{64})?\Z")] = ""
    identity: Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{64})?\Z")] = ""
    id: Text = ""
    publisher: Text = ""
    versions: Text = ""
    accept: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    accept_hosts: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    accept_held: bool = False
    allow_downgrade: bool = False


class SourceRow(TypedDict):
    """A source of the settings and its last index. `usable`: plugins can be installed from it; otherwise `code` and
    `reason` say why not. `trouble`: why the last refresh failed. `keys`: fingerprints of those that are pinned,
    `signed_by`: of those that signed the index. `expires`: by what of it ends then ("index", "revocations", a role),
    `expires_at` the first of them.
    """

    name: str
    format: str
    url: str
    keys: list[str]
    signed_by: list[str]
    usable: bool
    code: str
    reason: str
    trouble: str
    generated_at: str | None
    expires: dict[str, str]
    expires_at: str | None
    plugins: int
    refused: list[str]


class StepRow(TypedDict):
    """One step that was passed."""

    step: str
    detail: str


class TakingRow(TypedDict):
    """A bundle that is being taken: how many bytes of which file are here, and the steps that were passed."""

    id: str
    version: str
    source: str
    file: str
    bytes: int
    steps: list[StepRow]


class MarketGlance(TypedDict):
    """The sources, what is being taken, and which plugins are held."""

    sources: list[SourceRow]
    taking: list[TakingRow]
    held: list[str]


class OfferRow(TypedDict):
    """One plugin of an index. `unsupported` says why none of it can be taken; `installed` what this host has of it."""

    id: str
    name: str
    publisher: str
    type: str
    summary: str
    source: str
    channels: dict[str, str]
    installed: str | None
    unsupported: str


class OfferPage(TypedDict):
    """`next` is what `after` must be for the following page, null on the last."""

    plugins: list[OfferRow]
    next: str | None


class ReleaseRow(TypedDict):
    """One release. `first_seen`: when this host read of it first; `unsupported` says why it cannot be taken.
    `artifact_bytes` and `changelog_url` as the index has them, null where it has none.
    """

    version: str
    channel: str
    capabilities: list[str]
    artifact_sha256: str
    artifact_bytes: int | None
    changelog_url: str | None
    first_seen: str | None
    unsupported: str


class OfferedManifest(TypedDict):
    """What the signed manifest of a release says, once it is verified; `must_accept`: what takes consent by name.

    `adds` and `drops` against what this host has of the plugin: capabilities, and hosts as `host=…`. `risk` is the
    highest of its capabilities, `risk_here` of those of the version that this host has (null without one).
    """

    version: str
    identity: str
    description: str
    homepage: str
    license: str
    capabilities: list[str]
    hosts: list[str]
    requires_host: str
    must_accept: list[str]
    risk: str
    risk_here: str | None
    adds: list[str]
    drops: list[str]


class MarketOffer(OfferRow):
    """A plugin with its releases. `manifest`: of the release that an install would take; `problem`: why it is null."""

    releases: list[ReleaseRow]
    manifest: OfferedManifest | None
    problem: str
    held: bool


class TakenRow(TypedDict):
    """A bundle that was taken: it is verified, and neither installed nor granted anything. `source` is empty for an
    import.
    """

    id: str
    version: str
    source: str
    identity: str
    steps: list[StepRow]


class OutdatedRow(TypedDict):
    """A plugin of this host for which its source has a newer release; or one that its source has no more (`gone`)."""

    id: str
    installed: str
    offered: str
    source: str
    held: bool
    gone: bool


class OutdatedList(TypedDict):
    plugins: list[OutdatedRow]


class HoldSet(TypedDict):
    """`changed`: it was not so already."""

    id: str
    held: bool
    changed: bool
