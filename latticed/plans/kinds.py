"""The kinds of plans that latticed can apply, by name."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from latticed.plans.nft import NftKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.plans.kind import Kind

KINDS: Final[Mapping[str, Kind]] = MappingProxyType({"nft": NftKind()})
"""A kind that is not here is kept as a plan and reviewed by nobody; `latticed-apply` says so (`kind_unknown`)."""
