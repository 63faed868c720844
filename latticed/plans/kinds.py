"""The kinds of plans that latticed can apply, by name."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.plans.kind import Kind

KINDS: Final[Mapping[str, Kind]] = MappingProxyType({})
"""None yet: plans are kept, reviewed by nobody, and `latticed-apply` says so (`kind_unknown`)."""
