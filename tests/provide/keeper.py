"""Servers shared by all workers of a test run: started when first asked for, stopped when the run ends.

The keeper lives in pytest's own process and not in a worker, because workers come and go.
They ask it over a unix socket.
"""

import contextlib
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener

from tests.provide.processes import Unavailable, sweep, temporary_folder
from tests.servers import Server, start_shared

Answer = Server | Unavailable


class Keeper:
    def __init__(self) -> None:
        sweep()
        self._folder = temporary_folder()
        self.address = str(self._folder / "keeper")
        self._listener = Listener(self.address, "AF_UNIX")
        self._pool = ThreadPoolExecutor(thread_name_prefix="keeper")
        self._servers: dict[str, Future[Server]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="keeper", daemon=True)
        self._thread.start()

    def ask(self, kind: str) -> Answer:
        """The shared server of this kind; whoever asks first waits for its start."""
        with self._lock:
            future = self._servers.get(kind)
            if future is None:
                future = self._servers[kind] = self._pool.submit(start_shared, kind)
        try:
            return future.result().shared()
        except Unavailable as reason:
            return reason
        except Exception as error:  # in a worker it would be lost
            return Unavailable(f"{kind} did not start: {error!r}")

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError, OSError):
            kind = connection.recv()
            if kind is not None:
                connection.send(self.ask(kind))

    def close(self) -> None:
        self._listener.close()
        with self._lock:
            futures = list(self._servers.values())
        for future in futures:
            with contextlib.suppress(Exception):
                future.result().stop()
        self._pool.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def ask(address: str, kind: str) -> Answer:
    with Client(address, "AF_UNIX") as connection:
        connection.send(kind)
        answer: Answer = connection.recv()
        return answer
