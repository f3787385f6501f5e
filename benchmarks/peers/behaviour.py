"""What the peers do and do not do, tried on real servers: `python -m benchmarks.peers.behaviour`.

Each cell comes from processes that use the peer: without its options first, then with those that help ("by option").
Where a time limit would decide, the cell says what was seen until then.
"""

import contextlib
import functools
import itertools
import json
import logging
import queue
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import dev, interpreter, places
from benchmarks.peers.actor import FALSY, MANY, TYPED
from benchmarks.peers.adapters import PEERS
from benchmarks.peers.shapes import Peer
from benchmarks.stores import Stores, opened
from tests.faults.proxy import Proxy

PATIENCE = 15.0  # longer than any of them waits
INSISTENCE = 20.0
_keys = (f"{time.time_ns():x}-{number}" for number in itertools.count())


@functools.cache
def _python() -> str:
    return str(interpreter())


class Silent(Exception):
    """An actor gave no answer in time: what it called waits."""


class Actor:
    """The other end of `actor.py`."""

    def __init__(self, peer: Peer, where: dict[str, str], options: tuple[str, ...]) -> None:
        told = {"peer": peer.name, "store": peer.store, "asynchronous": peer.colours[0]}
        words = [_python(), "-m", "benchmarks.peers.actor"]
        self.process = subprocess.Popen(
            [*words, json.dumps({**told, "options": options, "places": where})],
            cwd=dev.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def hear(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """Return the next answer, or {} if the process has ended."""
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise Silent from None
        return json.loads(line) if line else {}

    def call(self, key: str, returns: str = "text", seconds: float = PATIENCE, **more: Any) -> dict[str, Any]:
        self.say(json.dumps({"key": key, "returns": returns, **more}))
        return self.hear(seconds)


@dataclass
class Scene:
    """A peer on its stores; actors end with it."""

    peer: Peer
    places: dict[str, str]
    options: tuple[str, ...]
    final: bool
    """Nothing else will be tried, so all that is missing is of interest."""
    stack: contextlib.ExitStack

    def actor(self) -> Actor:
        made = Actor(self.peer, self.places, self.options)
        self.stack.callback(made.process.wait)
        self.stack.callback(made.process.kill)
        return made


def falsy(scene: Scene) -> str:
    return _kept(scene, FALSY)


def types(scene: Scene) -> str:
    return _kept(scene, TYPED)


def _kept(scene: Scene, kinds: dict[str, Any]) -> str:
    """Each is returned once and asked for again: the function does not run, and the answer is the same."""
    actor, lost = scene.actor(), defaultdict[str, list[str]](list)
    for returns in kinds:
        if lost and not scene.final:
            break
        key = next(_keys)
        actor.call(key, returns)
        try:
            again = actor.call(key, returns)
        except Silent:
            actor, again = scene.actor(), {"runs": 0, "found": [{"error": "waits"}]}
        if again["runs"]:
            lost["runs again"].append(returns)
        elif "error" in again["found"][0]:
            lost["refused"].append(returns)
        elif again["found"][0]["value"] != again["expected"]:
            lost["changed"].append(returns)
    return "yes" if not lost else "no: " + "; ".join(f"{how} {', '.join(what)}" for how, what in lost.items())


def together(scene: Scene) -> str:
    """Eight at once, and the first is held until all have called."""
    seen = scene.actor().call(next(_keys), then="together")
    refused = [one["error"] for one in seen["found"] if "error" in one]
    if seen["runs"] != 1:
        return f"no: {seen['runs']} of {MANY} run"
    return f"yes, {len(refused)} refused" if refused else "yes, they wait"


def other_arguments(scene: Scene) -> str:
    actor, key = scene.actor(), next(_keys)
    actor.call(key, amount=1)
    again = actor.call(key, amount=2)
    if "error" in again["found"][0]:
        same = actor.call(key, amount=1)["found"][0]
        return "yes" if "value" in same else f"no: the same are refused too, {_said(same)}"
    return "no: runs again" if again["runs"] else "no: replayed"


def crashed(scene: Scene) -> str:
    """The owner is killed inside the function, another process calls."""
    if scene.peer.store == "memory":
        return "-"
    key = next(_keys)
    assert scene.actor().call(key, then="die") == {}
    seen = _insist(scene.actor(), key, "second")
    return "yes" if seen == "'second'" else f"no: {seen}"


def stalled(scene: Scene) -> str:
    """The owner is stopped past its lease, another one takes over; while that runs, the first goes on and completes."""
    if scene.peer.store == "memory":
        return "-"
    if not scene.peer.leased:
        return "- (no lease)"
    slow, key = scene.actor(), next(_keys)
    assert slow.call(key, value="slow", then="hold") == {"running": True}
    slow.process.send_signal(signal.SIGSTOP)
    owner = scene.actor()
    try:
        seen = _insist(owner, key, "new", then="hold")
        if seen != "running":
            return f"no takeover: {seen}"
        other = scene.actor()
        other.call(next(_keys))
    finally:
        slow.process.send_signal(signal.SIGCONT)
    slow.say()
    told = slow.hear()["found"][0]
    with contextlib.suppress(Silent):
        if other.call(key, value="third", seconds=0.5)["found"][0].get("value") == "'slow'":
            return "no: its result is replayed"
    owner.say()
    result = owner.hear()["found"][0]
    after = scene.actor().call(key, value="fourth")["found"][0]
    if not result.get("value") == after.get("value") == "'new'":
        return f"no: the new owner got {_said(result)}, the next caller {_said(after)}"
    return "yes" if "error" in told else "the new result stays, the stalled owner is not told"


def _said(found: dict[str, Any]) -> str:
    return str(found.get("value") or found["error"])


def _insist(actor: Actor, key: str, value: str, then: str = "") -> str:
    """Call until the function runs, for a while. Returns the answer, or the error that stayed."""
    seen, end = "", time.monotonic() + INSISTENCE
    while time.monotonic() < end:
        try:
            answer = actor.call(key, value=value, then=then)
        except Silent:
            return "waits"
        if answer.get("running"):
            return "running"
        seen = _said(answer["found"][0])
        if "value" in answer["found"][0]:
            break
        time.sleep(0.1)
    return seen


def requests(scene: Scene) -> str:
    """Round trips of a first run and of a replay, counted on the wire; the least of five, as some renew or listen."""
    if scene.peer.store == "memory":
        return "-"
    name = "redis" if scene.peer.store == "redis" else "postgres"
    address = scene.places[name].partition("@")[2] or scene.places[name].partition("//")[2]
    port = address.partition("/")[0].rpartition(":")[2]
    proxy = scene.stack.enter_context(Proxy(int(port)))
    counted: list[list[int]] = [[], []]
    scene.places = {one: url.replace(f":{port}/", f":{proxy.port}/") for one, url in scene.places.items()}
    actor = scene.actor()
    actor.call(next(_keys))
    for _ in range(5):
        key = next(_keys)
        for times in counted:
            proxy.reset_count()
            actor.call(key)
            times.append(proxy.requests)
    return " / ".join(str(min(times)) for times in counted)


Check = Callable[[Scene], str]
CHECKS: dict[str, tuple[Check, tuple[tuple[str, ...], ...]]] = {
    "round trips, first / replay": (requests, ((),)),
    "falsy results replayed": (falsy, ((), ("codec",))),
    "types kept": (types, ((), ("codec",))),
    "concurrent duplicates run once": (together, ((), ("lease",))),
    "other arguments refused": (other_arguments, ((), ("fingerprint",))),
    "killed owner taken over": (crashed, (("lease",),)),
    "stalled owner powerless, and told": (stalled, (("lease",),)),
}
"""Each with the options to try it with, one after the other until it is a yes."""


def judged(check: Check, tries: tuple[tuple[str, ...], ...], peer: Peer, where: dict[str, str]) -> str:
    """Return the cell: with the least options that make it a yes, or what was seen with all."""
    cells = []
    for options in tries:
        with contextlib.ExitStack() as stack:
            try:
                cell = check(Scene(peer, where, options, options is tries[-1], stack))
            except Silent:
                cell = "no: waits"
        if not cell.startswith("no"):
            return cell if options is tries[0] else f"{cell} (by option)"
        cells.append(cell)
    return cells[-1]


def table(stores: Stores) -> Iterator[tuple[Peer, dict[str, str]]]:
    for peer in PEERS:
        cells = {name: judged(*check, peer, places(stores)) for name, check in CHECKS.items()}
        yield peer, cells


def main() -> None:
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of connections that a closing proxy cancels
    with opened() as stores:
        print("| | " + " | ".join(CHECKS) + " |\n" + "|---" * (len(CHECKS) + 1) + "|")
        for peer, cells in table(stores):
            print(f"| {peer.name}, {peer.store} | " + " | ".join(cells.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
