"""One request on one connection, and everything that comes back on it: a second answer would be seen."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import h11


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int = 0
    """0 where no whole response came."""
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    responses: int = 0
    problem: str = ""


async def exchange(
    host: str, port: int, path: str, headers: Mapping[str, str], body: bytes, seconds: float = 120.0
) -> Reply:
    """Send a request, read until the server hangs up, and say what that was.

    Args:
        host: of the server.
        port: of the server.
        path: with its leading slash.
        headers: beside those that HTTP needs.
        body: JSON; empty to GET.
        seconds: to wait for all of it.
    """
    connection = h11.Connection(h11.CLIENT)
    own = {"Host": f"{host}:{port}", "Connection": "close", "Content-Length": str(len(body))}
    own |= {"Content-Type": "application/json"} if body else {}
    request = h11.Request(method="POST" if body else "GET", target=path, headers=list({**own, **headers}.items()))
    sent = (connection.send(request) or b"") + (connection.send(h11.Data(data=body)) or b"")
    connection.send(h11.EndOfMessage())
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            await _talk(host, port, sent, received)
    except (OSError, TimeoutError) as error:
        whole = parse(connection, bytes(received), ended=False)
        return whole if whole.status else Reply(problem=type(error).__name__)
    return parse(connection, bytes(received), ended=True)


async def _talk(host: str, port: int, sent: bytes, received: bytearray) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(sent)
        await writer.drain()
        while part := await reader.read(2**16):
            received += part
    finally:
        writer.close()


def parse(connection: h11.Connection, received: bytes, ended: bool) -> Reply:
    """The response in what was received.

    Args:
        connection: on which the request has been sent.
        received: all bytes.
        ended: the server has hung up.
    """
    status, headers, content = 0, dict[str, str](), bytearray()
    connection.receive_data(received)
    if ended and received:
        connection.receive_data(b"")
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode().lower(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return Reply(problem="no whole response")
    except h11.RemoteProtocolError as error:
        return Reply(problem=str(error))
    more = connection.trailing_data[0]
    return Reply(status, bytes(content), headers, 1 + max(more.count(b"HTTP/1."), bool(more)))
