"""Gateways to compare with, each as one would write it: `python -m benchmarks.serve_peers NAME UPSTREAM_URL`. Prints its port."""

import socket
import sys
from contextlib import asynccontextmanager


def starlette_aiohttp(upstream):
    import aiohttp
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    held = {}

    @asynccontextmanager
    async def lifespan(app):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            held["session"] = session
            yield

    async def chat(request):
        body = await request.body()

        async def stream():
            async with held["session"].post(upstream + "/chat/completions", data=body) as response:
                async for data in response.content.iter_any():
                    yield data

        return StreamingResponse(stream(), media_type="text/event-stream")

    return Starlette(
        routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=lifespan
    )


def fastapi_httpx(upstream):
    import httpx
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None)
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.body()

        async def stream():
            async with client.stream(
                "POST", upstream + "/chat/completions", content=body
            ) as response:
                async for data in response.aiter_raw():
                    yield data

        return StreamingResponse(stream(), media_type="text/event-stream")

    return app


PEERS = {"starlette+aiohttp": starlette_aiohttp, "fastapi+httpx": fastapi_httpx}


def main():
    import uvicorn

    app = PEERS[sys.argv[1]](sys.argv[2])
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", access_log=False, log_level="error", backlog=4096
    )
    server = uvicorn.Server(config)
    print(listener.getsockname()[1], flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
