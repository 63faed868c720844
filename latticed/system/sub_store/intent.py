"""What an operator wants of Sub-Store: the configuration, typed."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

MIB: Final = 1 << 20


class Intent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`bundle`: the backend's file on the host; `program`: Node's name in `service.programs`. `login`, `token`:
    `${secret:NAME}`, of the password and of what opens downloads (empty: they want the login too). `path`: where it is
    served; `prefix`: the part of the path that the backend itself wants, empty for one that knows none; `frontend`: a
    directory on the host. `hosts`: where it may connect to. `environment`: more of its own variables. `data_*`: what it
    may keep.
    """

    bundle: str
    login: str
    program: str = "sub-store"
    token: str = ""
    port: int = 3000
    path: str = "/latticed.sub-store/"
    prefix: str = "/backend"
    frontend: str = ""
    hosts: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    data_bytes: int = 64 * MIB
    data_files: int = 1_000
