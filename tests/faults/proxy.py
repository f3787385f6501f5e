"""A TCP proxy on loopback that loses, delays and cuts what passes, and counts round trips.

    with Proxy(server.port) as proxy:
        client = connect(port=proxy.port)
        proxy.drop_reply(b"COMMIT")     # the server commits, the client never hears of it

Connections must not be encrypted (`sslmode=disable`), or there is nothing to match.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

LIMIT = 1 << 20

_FLUSH = b"H\0\0\0\4"  # what psycopg sends behind the end of a pipeline: by then the answer may be here

Moment = Literal["request", "reply"]
Watch = Callable[[Moment], bool]
"""Told of each round trip, when its request and when its reply begin to pass; True loses them and cuts."""


class Proxy:
    """Passes everything at first. Every method takes effect before it returns, on open connections too."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.connections = 0  # that clients have opened
        self.requests = 0  # round trips: client data that comes first, or after server data, per connection
        self.log: list[bytearray] = []  # what the client sent, one entry per round trip
        self.fired = threading.Event()  # the armed drop has happened
        self.watch: Watch = lambda moment: False
        self._target = target_port
        self._delay = 0.0
        self._armed: tuple[str, bytes] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def restore(self) -> None:
        """Pass everything again, also what a blackhole held back. What was armed is disarmed."""
        self._armed, self._delay = None, 0.0
        self._do(self._open())

    def refuse(self) -> None:
        """Cut what is open and refuse new connections."""
        self._do(self._refuse())

    def blackhole(self) -> None:
        """Accept, answer nothing, close nothing: packets are lost."""
        self._do(self._hold())

    def delay(self, seconds: float) -> None:
        """Each request takes so much longer to arrive."""
        self._delay = seconds

    def cut(self) -> None:
        """Reset all open connections; new ones pass."""
        self._do(self._cut())

    def drop_request(self, match: bytes) -> None:
        """Once: the request with these bytes is lost and its connection cut."""
        self._arm("request", match)

    def drop_reply(self, match: bytes) -> None:
        """Once: the server gets the request with these bytes; its reply is lost and the connection cut."""
        self._arm("reply", match)

    def reset_count(self) -> None:
        self.requests = 0
        self.log.clear()

    def _arm(self, what: str, match: bytes) -> None:
        self.fired.clear()
        self._armed = (what, match)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _open(self) -> None:
        if self._server is None:
            self._passing = asyncio.Event()
            self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=LIMIT)
            self.port = self._server.sockets[0].getsockname()[1]
        self._passing.set()

    async def _hold(self) -> None:
        self._passing.clear()

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _end(self) -> None:
        await self._refuse()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self.connections += 1
        self._writers.add(writer)
        try:
            await self._passing.wait()
            answers, server = await asyncio.open_connection("127.0.0.1", self._target, limit=LIMIT)
            writers.append(server)
            self._writers.add(server)
            link = _Link(server, writer)
            await _until_first(
                _pump(reader, lambda chunk: self._forward(link, chunk)),
                _pump(answers, lambda chunk: self._answer(link, chunk)),
            )
            for end in writers:
                end.close()
                await end.wait_closed()
        except (OSError, _Dropped):
            pass  # the server is down, one end has cut, or we are to
        finally:
            for end in writers:
                _reset(end)
                self._writers.discard(end)

    async def _forward(self, link: "_Link", chunk: bytes) -> None:
        if link.answered and chunk != _FLUSH:
            link.begin(chunk)
            self.requests += 1
            self.log.append(link.burst)
            if self.watch("request"):
                self._drop()
        link.burst += chunk
        if self._delay:
            await asyncio.sleep(self._delay)
        await self._passing.wait()
        if self._armed and self._armed[1] in link.burst:
            (what, _), self._armed = self._armed, None
            if what == "request":
                self._drop()
            link.lose_reply = True
        await _send(link.server, chunk)

    async def _answer(self, link: "_Link", chunk: bytes) -> None:
        if not link.answering and self.watch("reply"):
            self._drop()
        link.answering = True
        link.answered = link.waits_for_client(chunk)
        await self._passing.wait()
        if link.lose_reply:
            self._drop()
        await _send(link.client, chunk)

    def _drop(self) -> NoReturn:
        self.fired.set()
        raise _Dropped


class _Dropped(Exception):
    """What was armed has happened: cut this connection."""


class _Link:
    """One connection and how far it has come."""

    def __init__(self, server: asyncio.StreamWriter, client: asyncio.StreamWriter) -> None:
        self.server, self.client = server, client
        self.answered = True  # so that the first request counts
        self.answering = True
        self.burst = bytearray()  # what the client has sent since the last answer
        self.lose_reply = False
        self._ready: _Ready | None = None
        self._first = True

    def begin(self, chunk: bytes) -> None:
        """A request begins with these bytes."""
        if self._first and len(chunk) >= 8 and struct.unpack("!IH", chunk[:6]) == (len(chunk), 3):
            self._ready = _Ready()
        self._first = self.answered = self.answering = False
        self.burst = bytearray()

    def waits_for_client(self, chunk: bytes) -> bool:
        """True if the answer is complete with these bytes, as far as can be told."""
        return self._ready is None or self._ready.after(chunk)


class _Ready:
    """Reads the messages of a PostgreSQL server, which says when it is ready for the next request.

    Before that a client in pipeline mode sends what it likes, whenever it gets to it: more of the same round trip.
    (PostgreSQL manual, "Pipelining" and "Message Formats".)
    """

    def __init__(self) -> None:
        self._started = False
        self._waits = False
        self._rest = bytearray()  # the beginning of a message

    def after(self, chunk: bytes) -> bool:
        """True if the server waits for the client: it is ready, takes a copy, or is still greeting."""
        self._rest += chunk
        at = 0
        while len(self._rest) - at >= 5:
            end = at + 1 + int.from_bytes(self._rest[at + 1 : at + 5], "big")
            if end > len(self._rest):
                break
            self._waits = self._rest[at] in b"ZG"
            self._started = self._started or self._rest[at] in b"Z"
            at = end
        del self._rest[:at]
        return not self._started or (self._waits and not self._rest)


async def _until_first(*work: Coroutine[Any, Any, None]) -> None:
    """Run until one of them ends, and take that one's error."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, carry: Callable[[bytes], Awaitable[None]]) -> None:
    while chunk := await reader.read(LIMIT):
        await carry(chunk)


async def _send(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    writer.write(chunk)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, and without sending what is buffered."""
    with contextlib.suppress(OSError):
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
