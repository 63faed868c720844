"""Importing libraries without what they would keep in memory for ever and latticed does not use.

Three means, each for what it fits: a variable or a setting of the library itself; a module that is loaded when it is
first used (`_WHEN_USED`); and for names that a library takes out of a module at once, stand-ins which fetch the real
thing when they are called (`_STAND_INS`). Whoever uses such a module after all gets it whole.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import mimetypes
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

_PYTHON_ONLY: Final = "FROZENLIST_NO_EXTENSIONS"
_WHEN_USED: Final = frozenset({"attr.validators", "msgspec.inspect"})
"""Modules that their packages import whole (`from . import validators`) and use in functions that latticed never calls
while it starts: 0.3 MiB each.
"""
_ABSENT: Final = ("bz2", "lzma")
"""Modules that `shutil` does without where Python was built without them; latticed unpacks no such archives."""


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Within the block, importing aiohttp and msgspec takes 3 MiB less. For imports, before there are other threads.

    frozenlist comes without its extension, which is all that loads libstdc++ (1 MiB) and serves lists of a few signal
    handlers; `mimetypes` does not read the host's files of media types (0.4 MiB), as latticed has its own table.
    """
    before = os.environ.get(_PYTHON_ONLY)
    files = mimetypes.knownfiles[:]
    hidden = {name: module for name, module in _replaced().items() if name not in sys.modules}
    finder = _WhenUsed()
    os.environ[_PYTHON_ONLY] = "1"
    mimetypes.knownfiles.clear()
    sys.modules.update(hidden)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in hidden:
            del sys.modules[name]
        mimetypes.knownfiles.extend(files)
        del os.environ[_PYTHON_ONLY]
        if before is not None:
            os.environ[_PYTHON_ONLY] = before


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Within the block these modules seem not to be installed, unless they are loaded already: for a library that takes
    them along where it finds them, and does without.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class _WhenUsed:
    """Finds the modules of `_WHEN_USED`, loaded when an attribute of theirs is first read."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _WHEN_USED:
            return None
        for other in sys.meta_path:
            if other is not self and (spec := other.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = importlib.util.LazyLoader(spec.loader)
                return spec
        return None


def _replaced() -> dict[str, Any]:
    """What stands in `sys.modules` within the block for modules that are not imported."""
    # aiohttp asks them about proxies of the environment, which latticed never uses; the real module takes http.client,
    # tempfile and much of urllib along: 0.5 MiB.
    request = ModuleType("urllib.request")
    for name in ("getproxies", "proxy_bypass"):
        setattr(request, name, _fetching("urllib.request", name))
    # Only html.unescape looks at it, which nothing here calls; 0.4 MiB.
    entities = ModuleType("html.entities")
    entities.__dict__["html5"] = _Entities()
    # semver's own program, whose functions it has under old names too; it takes argparse along: 0.4 MiB.
    cli = ModuleType("semver.cli")
    for name in ("cmd_bump", "cmd_check", "cmd_compare", "cmd_nextver", "createparser", "main", "process"):
        setattr(cli, name, _fetching("semver.cli", name))
    return {one.__name__: one for one in (request, entities, cli)} | dict.fromkeys(_ABSENT)


def _fetching(module: str, name: str) -> Any:
    """A function that calls the one of that name, imported then."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


class _Entities(Mapping[str, str]):
    """`html.entities.html5`, imported when it is first looked at."""

    @property
    def _real(self) -> dict[str, str]:
        return importlib.import_module("html.entities").html5  # type: ignore[no-any-return]

    def __getitem__(self, name: str) -> str:
        return self._real[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)
