"""The certificate authorities of this host, which TLS connections of host services trust: read once, when needed.

aiohttp reads them twice when it is imported, for contexts of its own: 40 ms of CPU and 1.6 MiB of memory for something
that latticed does not use. Importing it within `unread` spares the daemon that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


async def trusted() -> ssl.SSLContext:
    """A client's TLS context that trusts the authorities of this host; the same one at each call."""
    # In a thread: the first call reads a few hundred certificates from disk. Two first calls at once may both do so,
    # which is harmless.
    return await asyncio.to_thread(_trusted)


@functools.cache
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Within the block, a default TLS context has no authorities, so that it costs nothing and trusts no server.

    For imports, before there are other threads: it changes the environment, where OpenSSL looks for their place
    (SSL_CTX_set_default_verify_paths(3)).
    """
    paths = ssl.get_default_verify_paths()
    names = (paths.openssl_cafile_env, paths.openssl_capath_env)
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)
