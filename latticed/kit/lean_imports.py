"""Importing aiohttp without what it would keep in memory for ever and latticed does not use."""

from __future__ import annotations

import contextlib
import mimetypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PYTHON_ONLY = "FROZENLIST_NO_EXTENSIONS"


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Within the block, importing aiohttp takes 1.3 MiB less. For imports, before there are other threads.

    frozenlist comes without its extension, which is all that loads libstdc++ (1 MiB) and serves lists of a few signal
    handlers; `mimetypes` does not read the host's files of media types (0.4 MiB), as latticed has its own table.
    """
    before = os.environ.get(_PYTHON_ONLY)
    files = mimetypes.knownfiles[:]
    os.environ[_PYTHON_ONLY] = "1"
    mimetypes.knownfiles.clear()
    try:
        yield
    finally:
        mimetypes.knownfiles.extend(files)
        del os.environ[_PYTHON_ONLY]
        if before is not None:
            os.environ[_PYTHON_ONLY] = before
