"""nginx: this host's web sites, from an intent that an operator reviews.

Pure: `decode` reads an intent strictly, `check` says what is wrong with it (with and without facts of the live host),
`render` writes the whole configuration of an nginx of its own, one file for each site, `syntax` is the part of nginx's
language that it uses, `applied` reads a rendering again, `narrows` says whether a new intent only takes away. None of
them opens a file, starts a program or reads a clock. `plugin` plans with them; the root helper's kind `nginx`
(`latticed.plans.nginx`) applies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.nginx.plugin import Nginx

    return Nginx


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
