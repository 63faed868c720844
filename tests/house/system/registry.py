"""The built-in plugins of the tests: what a daemon brings is one of `SETS` by name."""

from __future__ import annotations

from latticed.system import notify
from latticed.system.registry import BUILTINS
from tests.house.system import allowlist, allowlist_next, small

SMALL = tuple(small.found())
SETS = {
    "none": (),
    "latticed": BUILTINS,
    "listed": (*BUILTINS, *SMALL[: 8 - len(BUILTINS)]),
    "notify": (notify.BUILTIN,),
    "one": (allowlist.BUILTIN,),
    "eight": (allowlist.BUILTIN, *SMALL),
    "next": (allowlist_next.BUILTIN, *SMALL),
}
