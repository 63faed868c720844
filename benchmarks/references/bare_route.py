"""An aiohttp handler that answers what a worker's template would: `bare_route.py` prints its port, then serves."""

from __future__ import annotations

import asyncio

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.path}\n")


async def serve() -> None:
    app = web.Application()
    app.router.add_get("/acme.route/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
