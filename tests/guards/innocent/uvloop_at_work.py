"""A correct program on uvloop."""

import asyncio

import uvloop


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in range(300):
        writer.write(b"%d\n" % n)
        assert await reader.readline() == b"%d\n" % n
    await asyncio.sleep(0.3)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


uvloop.run(main())
