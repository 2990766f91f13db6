"""The client and the server's relay over TLS, with a certificate authority that exists for the test."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys

import pytest
import trustme

from tournant.serve.errors import HTTPError
from tournant.serve.relay import fetch
from tournant.serve.upstream import Upstream

ANSWER = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "sealed"}, "finish_reason": "stop"}],
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path, monkeypatch) -> None:
    """Let this process trust the authority, in the way that OpenSSL offers to anyone."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        body = json.dumps(ANSWER).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await reader.read()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError):
        pass  # refused, or over: the test looks at the other end
    finally:
        writer.close()


async def secure(authority: trustme.CA, name: str) -> tuple[asyncio.Server, str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    return server, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


ASK = """
import asyncio, sys
from tournant.llm import Client
async def main():
    async with Client(sys.argv[1], "m") as client:
        print((await client.chat("open?")).text)
asyncio.run(main())
"""


async def asked(url: str) -> str:
    """Ask in a process of its own: what OpenSSL is told by the environment is read once."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASK, url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, complaint = await child.communicate()
    if child.returncode:
        raise ChildProcessError(complaint.decode())
    return said.decode().strip()


async def relayed(url: str) -> str:
    upstream = Upstream(url, None, 5)
    await upstream.start()
    try:
        request = upstream.request("POST", "/chat/completions", b"{}")
        return json.loads((await fetch(upstream, request, 5, 10_000)).body)["choices"][0][
            "message"
        ]["content"]
    finally:
        await upstream.aclose()


@pytest.mark.parametrize("ask", [asked, relayed])
def test_an_answer_comes_over_tls(ask, authority, trusted):
    async def main():
        server, url = await secure(authority, "127.0.0.1")
        async with server:
            return await ask(url)

    assert asyncio.run(main()) == "sealed"


@pytest.mark.parametrize(("ask", "error"), [(asked, ChildProcessError), (relayed, HTTPError)])
def test_a_certificate_for_another_name_is_refused(ask, error, authority, trusted):
    async def main():
        server, url = await secure(authority, "elsewhere.example")
        async with server:
            with pytest.raises(error, match=r"ConnectionFailed.*certificate|can't be reached"):
                await ask(url)

    asyncio.run(main())


@pytest.mark.parametrize(("ask", "error"), [(asked, ChildProcessError), (relayed, HTTPError)])
def test_an_authority_that_nobody_trusts_is_refused(ask, error, authority):
    async def main():
        server, url = await secure(authority, "127.0.0.1")
        async with server:
            with pytest.raises(error, match=r"ConnectionFailed.*certificate|can't be reached"):
                await ask(url)

    asyncio.run(main())
