"""An aiohttp server that does nothing: `bare_aiohttp.py SOCKET` answers GET / with a small JSON object."""

from __future__ import annotations

import sys

from aiohttp import web

BODY = b'{"status":"ok","problems":[]}'


async def answer(_: web.Request) -> web.Response:
    return web.Response(body=BODY, content_type="application/json")


def main() -> None:
    app = web.Application()
    app.router.add_get("/", answer)
    web.run_app(app, path=sys.argv[1], print=None, access_log=None)


if __name__ == "__main__":
    main()
