"""What is done to processes, servers and connections while they are in use: at random, by one seed, all of it noted."""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.faults.proxy import Proxy
from tests.faults.soaking.crew import Crew, Member
from tests.faults.soaking.journal import Journal
from tests.servers import Server

__all__ = ["ODDS", "Chaos"]

ODDS = {
    "kill": 6,  # a process
    "stall": 8,  # a process, past its lease
    "cut": 4,  # all connections to a server
    "drop": 6,  # one request, or its reply
    "blackhole": 2,  # packets to a server, for a moment
    "restart": 2,  # a server, after a kill -9
    "pause": 2,  # a server
}
ANYTHING, COMMIT, SCRIPT = b"", b"COMMIT", b"EVALSHA"


class Chaos:
    """One fault after another; what is stalled goes on beside the next ones."""

    def __init__(
        self,
        odds: random.Random,
        crew: Crew,
        servers: Mapping[str, Server],
        proxies: Mapping[str, Proxy],
        lease: float,
        journal: Journal,
        kinds: Sequence[str] = (),
    ) -> None:
        self._odds, self._crew, self._servers, self._proxies = odds, crew, servers, proxies
        self._lease, self._journal = lease, journal
        self._kinds = [*(kinds or ODDS)]
        self._stalled: list[tuple[float, Member]] = []
        self._clock = threading.Event()  # never set: how long a fault lasts is part of the load
        self.counts: Counter[str] = Counter()

    def once(self) -> None:
        """One fault, from its beginning to its end."""
        self._wake(time.monotonic())
        self.counts["died"] += self._crew.replace_dead()
        kind = self._odds.choices(self._kinds, [ODDS[one] for one in self._kinds])[0]
        match kind:
            case "kill" | "stall":
                self._on_process(kind)
            case _:
                self._on_server(kind, self._odds.choice([*self._servers]))
        self._clock.wait(self._odds.uniform(0.05, 0.4))

    def over(self) -> None:
        """From here on nothing is broken."""
        self._wake(float("inf"))
        self._crew.replace_dead()
        for proxy in self._proxies.values():
            proxy.restore()

    def _wake(self, now: float) -> None:
        for until, member in [one for one in self._stalled if one[0] <= now]:
            self._stalled.remove((until, member))
            member.wake()
            self._journal.say("woken", target=str(member.pid))

    def _note(self, kind: str, target: str) -> None:
        self.counts[kind] += 1
        self._journal.say("fault", kind=kind, target=target)

    def _on_process(self, kind: str) -> None:
        awake = [member for member in self._crew.members if member.alive and not member.stopped]
        if not awake:
            return
        member = self._odds.choice(awake)
        self._note(kind, str(member.pid))
        if kind == "kill":
            member.kill()
            self._crew.replace_dead()
            return
        member.stop()
        self._stalled.append((time.monotonic() + self._lease * self._odds.uniform(0.8, 2.2), member))

    def _on_server(self, kind: str, name: str) -> None:
        proxy, server = self._proxies[name], self._servers[name]
        self._note(kind, name)
        match kind:
            case "cut":
                proxy.cut()
            case "drop":
                match = self._odds.choice((ANYTHING, ANYTHING, COMMIT, SCRIPT))
                arm = self._odds.choice((proxy.drop_request, proxy.drop_reply, proxy.drop_reply))
                arm(match)
            case "blackhole":
                proxy.blackhole()
                self._clock.wait(self._odds.uniform(0.1, 1.5))
                proxy.restore()
            case "restart":
                server.kill()
                self._clock.wait(self._odds.uniform(0.0, 0.5))
                server.start()
            case "pause":
                server.pause()
                self._clock.wait(self._odds.uniform(0.2, 1.5))
                server.resume()
        self._journal.say("over", kind=kind, target=name)
