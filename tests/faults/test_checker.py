"""The checker against histories written by hand: right ones pass, and each rule is broken by one of its own."""

import json
from typing import Any

import pytest

from tests.faults.checker import RULES, check, undecided
from tests.faults.soaking.history import Event, Promise
from tests.faults.soaking.search import Op, possible
from tests.faults.soaking.shrinking import shortest

REDIS, DATABASE = frozenset({"redis"}), frozenset({"database"})
PROMISES = {
    "rerun": Promise(joined=False, on_orphan="rerun", lease=1.0, servers=REDIS),
    "refuse": Promise(joined=False, on_orphan="refuse", lease=1.0, servers=REDIS),
    "probe": Promise(joined=False, on_orphan="probe", lease=1.0, servers=REDIS),
    "joined": Promise(joined=True, on_orphan="rerun", lease=1.0, servers=DATABASE),
}


def history(composition: str, text: str, key: str = "1") -> list[Event]:
    """Lines of `seconds what call run name=value`. Every process is number 1, and is there from the beginning."""
    events = []
    for line in filter(str.strip, text.splitlines()):
        at, what, *words = line.split()
        pairs = dict(word.split("=") for word in words if "=" in word)
        more: dict[str, Any] = {name: _plain(value) for name, value in pairs.items()}
        plain = [*(word for word in words if "=" not in word), "", ""]
        own = "" if what in ("fault", "over", "start") else f"postgres+redis/{composition}/{key}"
        call, run = ("", plain[0]) if what in ("row", "told") else (plain[0], plain[1])
        if what == "invoke":
            more = {"pid": 1} | more
        if what == "raise":
            more = {"kind": "idempo", "ran": None} | more
        fence = int(more.pop("fence", 0))
        events.append(Event(float(at), what, own, call, run, fence, more))
    return events


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None if value == "None" else value


RUN = """
    0.0 invoke A
    0.2 begin A A1 fence=1 asked=0.1
    0.3 end A A1 how=value
    0.4 return A value=A1 replayed=false
    9.9 told A1 fence=1 taken=true
"""
JOINED = """
    0.0 invoke A
    0.2 begin A A1 fence=1
    0.3 end A A1 how=value
    0.4 return A value=A1 replayed=false
    9.9 row A1
"""
VANISHED = """
    0.0 invoke A
    0.2 begin A A1 fence=1 asked=0.1
"""
TAKEN_OVER = """
    0.3 invoke B
    1.4 begin B B1 fence=2 asked=1.3
    1.5 end B B1 how=value
    1.6 return B value=B1 replayed=false
    9.9 told B1 fence=2 taken=true
"""
ASKED_LATER = """
    2.0 invoke C
"""
CUT = "0.25 fault kind=cut target=redis\n"

RIGHT = {
    "a replay": ("rerun", RUN + "0.1 invoke B\n0.5 return B value=A1 replayed=true"),
    "one that waits in vain": ("rerun", RUN + "0.1 invoke B\n0.35 raise B error=InProgressError ran=false"),
    "a takeover": ("rerun", VANISHED + TAKEN_OVER + ASKED_LATER + "2.1 return C value=B1 replayed=true"),
    "a takeover after the last heartbeat": (
        "rerun",
        VANISHED + "0.5 renewed A fence=1\n0.9 renewed A fence=1\n" + TAKEN_OVER.replace("1.", "2."),
    ),
    "an overtaken owner that comes back": (
        "rerun",
        VANISHED
        + TAKEN_OVER
        + "3.0 end A A1 how=value\n3.1 raise A error=LeaseLostError ran=true stored=B1\n"
        "9.95 told A1 fence=1 taken=false",
    ),
    "a failure, then another run": (
        "rerun",
        VANISHED
        + "0.3 end A A1 how=declined\n0.5 raise A error=Declined kind=own\n"
        + TAKEN_OVER.replace("1.", "0."),
    ),
    "a completion that was cut": (
        "rerun",
        VANISHED
        + CUT
        + "0.3 end A A1 how=value\n0.5 raise A error=OutcomeUnknownError\n9.9 told A1 fence=1 taken=true"
        + "\n2.0 invoke B\n2.1 return B value=A1 replayed=true",
    ),
    "a claim of a call that was killed": (
        "rerun",
        "0.0 invoke A\n0.1 invoke B\n0.5 raise B error=InProgressError ran=false\n" + TAKEN_OVER.replace("B", "C"),
    ),
    "an orphan": ("refuse", VANISHED + "2.0 invoke B\n2.1 raise B error=OutcomeUnknownError"),
    "a late completion": (
        "refuse",
        VANISHED
        + "2.0 invoke B\n2.1 raise B error=OutcomeUnknownError\n"
        + RUN.split("asked=0.1")[1].replace("0.", "3."),
    ),
    "an effect that is found": (
        "probe",
        VANISHED + "0.3 effect A A1\n1.3 invoke B\n1.5 return B value=A1 replayed=false\n"
        "9.9 told A1 fence=1 taken=true",
    ),
    "an effect that is found by one who is killed": (
        "probe",
        VANISHED + "1.3 invoke B\n2.0 invoke C\n2.2 return C value=A1 replayed=true\n9.9 told A1 fence=1 taken=true",
    ),
    "a row": ("joined", JOINED + "0.1 invoke B\n0.5 return B value=A1 replayed=true"),
    "an exception that is a result": (
        "joined",
        JOINED.replace("how=value", "how=error").replace("value=A1", "value=error:A1").replace("9.9 row A1", ""),
    ),
    "a commit without a reply": (
        "joined",
        "0.1 fault kind=drop target=postgres\n"
        + JOINED.replace("return A value=A1 replayed=false", "raise A error=OutcomeUnknownError")
        + "2.0 invoke B\n2.1 return B value=A1 replayed=true",
    ),
    "two runs in one transaction's time, one undone": (
        "joined",
        JOINED + "0.0 invoke B\n0.1 fault kind=cut target=postgres\n0.2 begin B B1 fence=7\n0.3 end B B1 how=failed\n"
        "0.4 raise B error=OperationalError kind=driver",
    ),
    "a ledger that is away": (
        "rerun",
        "0.1 fault kind=restart target=redis\n0.3 over kind=restart target=redis\n"
        "0.2 start pid=1\n0.4 invoke A\n0.5 raise A error=LedgerUnavailableError ran=false",
    ),
}  # fmt: skip

WRONG = {
    "two_values": [
        ("joined", JOINED + "0.1 invoke B\n0.2 begin B B1 fence=2\n0.3 end B B1 how=value\n"
         "0.5 return B value=B1 replayed=false"),
    ],
    "value_of_no_run": [
        ("rerun", "0.0 invoke A\n0.1 return A value=X1 replayed=true"),
        ("rerun", RUN.replace("9.9 told A1 fence=1 taken=true", "")),
        ("rerun", VANISHED + "0.5 invoke B\n0.6 return B value=A1 replayed=true\n9.9 told A1 fence=1 taken=true"),
    ],
    "untrue_replayed": [("rerun", RUN.replace("replayed=false", "replayed=true"))],
    "rows_not_exactly_one": [
        ("joined", JOINED + "9.9 row B1"),
        ("joined", JOINED.replace("9.9 row A1", "")),
        ("joined", JOINED.replace("row A1", "row B1")),
        ("joined", JOINED.replace("how=value", "how=error").replace("value=A1", "value=error:A1")),
    ],
    "refused_and_ran": [
        ("rerun", VANISHED + "0.3 raise A error=InProgressError ran=false"),
        ("joined", CUT.replace("redis", "postgres") + "0.0 invoke A\n0.2 begin A A1 fence=1\n0.3 end A A1 how=failed\n"
         "0.5 raise A error=LedgerUnavailableError ran=false"),
    ],
    "effect_of_a_failure": [
        ("joined", "0.0 invoke A\n0.2 begin A A1 fence=1\n0.3 end A A1 how=declined\n"
         "0.4 raise A error=Declined kind=own\n9.9 row A1"),
    ],
    "ran_after_success": [
        ("rerun", RUN + "2.0 invoke B\n2.3 begin B B1 fence=2 asked=2.1"),
        ("joined", JOINED + "2.0 invoke B\n2.3 begin B B1 fence=2"),
    ],
    "overtaken_too_early": [
        ("rerun", VANISHED + TAKEN_OVER.replace("1.", "0.")),
        ("rerun", VANISHED + "0.5 renewed A fence=1\n0.9 renewed A fence=1\n" + TAKEN_OVER),
        ("rerun", VANISHED + TAKEN_OVER.replace("1.", "0.") + "0.9 end A A1 how=declined"),
    ],
    "fences_not_growing": [
        ("rerun", VANISHED.replace("fence=1", "fence=3") + TAKEN_OVER),
        ("joined", "0.0 invoke A\n0.2 begin A A1 fence=3\n" + JOINED.replace("A", "B").replace("0.", "1.")),
    ],
    "second_effect_under_refuse": [
        ("refuse", VANISHED + TAKEN_OVER + "9.8 told A1 fence=1 taken=true"),
    ],
    "guarded_write_went_back": [
        ("rerun", VANISHED + TAKEN_OVER + "9.95 told A1 fence=1 taken=true"),
        ("rerun", VANISHED + "9.8 told A1 fence=1 taken=true" + TAKEN_OVER.replace("taken=true", "taken=false")),
    ],
    "lost_to_nobody": [
        ("rerun", VANISHED + "0.3 end A A1 how=value\n1.5 raise A error=LeaseLostError ran=true"),
        ("rerun", VANISHED + "0.2 invoke B\n0.3 end A A1 how=value\n0.5 raise A error=LeaseLostError ran=true"),
    ],
    "stored_is_another": [
        ("rerun", VANISHED + TAKEN_OVER + "3.0 end A A1 how=value\n"
         "3.1 raise A error=LeaseLostError ran=true stored=A1"),
    ],
    "unknown_without_reason": [
        ("rerun", VANISHED + "0.3 end A A1 how=value\n0.5 raise A error=OutcomeUnknownError"),
        ("refuse", VANISHED + "0.4 invoke B\n0.5 raise B error=OutcomeUnknownError"),
        ("joined", CUT + JOINED.replace("return A value=A1 replayed=false", "raise A error=OutcomeUnknownError")),
    ],
    "unavailable_without_fault": [
        ("rerun", "0.0 invoke A\n0.2 raise A error=LedgerUnavailableError ran=false"),
        ("joined", "0.0 invoke A\n0.2 raise A error=OperationalError kind=driver"),
        ("rerun", "0.1 fault kind=restart target=redis\n0.3 over kind=restart target=redis\n"
         "0.35 start pid=1\n0.4 invoke A\n0.5 raise A error=LedgerUnavailableError ran=false"),
        ("rerun", "0.1 fault kind=stall target=2\n0.4 invoke A\n0.5 raise A error=LedgerUnavailableError ran=false"),
    ],
    "unexplained_error": [
        ("rerun", CUT + "0.0 invoke A\n0.5 raise A error=ConnectionError kind=driver"),
        ("rerun", "0.0 invoke A\n0.5 raise A error=FingerprintMismatchError ran=false"),
        ("joined", "0.0 invoke A\n0.5 raise A error=StateConflictError ran=false"),
        ("joined", "0.0 invoke A\n0.5 raise A error=LeaseLostError ran=true"),
        ("rerun", "0.0 invoke A\n0.5 raise A error=Declined kind=own"),
        ("rerun", "0.0 invoke A\n0.5 raise A error=AttributeError kind=other"),
    ],
    "not_settled": [
        ("rerun", VANISHED + "8.0 invoke B settling=true\n9.0 raise B error=InProgressError ran=false"),
        ("rerun", "8.0 invoke B settling=true"),
    ],
    "no_order_explains_it": [
        ("rerun", RUN + "2.0 invoke B\n2.1 raise B error=InProgressError ran=false"),
        ("rerun", RUN.replace("0.3 end", "0.5 end").replace("0.4 return", "0.6 return")
         + "0.25 invoke B\n0.45 return B value=A1 replayed=true"),
        ("refuse", VANISHED + "0.3 end A A1 how=declined\n0.5 raise A error=Declined kind=own\n"
         + TAKEN_OVER + "3.0 invoke C\n3.1 raise C error=OutcomeUnknownError"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_passes(name: str) -> None:
    events = history(*RIGHT[name])
    assert check(events, PROMISES) == []
    assert undecided(events, PROMISES) == []


@pytest.mark.parametrize(
    ("rule", "composition", "text"),
    [pytest.param(rule, *case, id=f"{rule}-{n}") for rule in WRONG for n, case in enumerate(WRONG[rule])],
)
def test_a_wrong_history_breaks_its_rule_and_no_other(rule: str, composition: str, text: str) -> None:
    assert {found.rule for found in check(history(composition, text), PROMISES)} == {rule}


def test_each_rule_has_a_history_that_breaks_it() -> None:
    assert {rule.__name__ for rule in RULES} == set(WRONG)


def test_the_shortest_history_has_only_what_the_violation_is_about() -> None:
    text = VANISHED + "0.5 renewed A fence=1\n0.9 renewed A fence=1\n" + TAKEN_OVER + CUT
    text += "".join(f"{n}.0 invoke D{n}\n{n}.5 return D{n} value=B1 replayed=true\n" for n in range(2, 9))
    events = history("rerun", text) + history("rerun", RUN, key="2")
    (violation,) = check(events, PROMISES)
    short = shortest(events, PROMISES, violation)
    assert violation.rule == "overtaken_too_early"
    assert [f"{event.at} {event.what}" for event in short] == [
        "0.0 invoke", "0.2 begin", "0.3 invoke", "0.5 renewed", "0.9 renewed", "1.4 begin",
    ]  # fmt: skip


def test_the_shortest_history_without_an_order_keeps_what_was_done_to_the_record() -> None:
    answered = "".join(f"{n}.0 invoke D{n}\n{n}.5 return D{n} value=A1 replayed=true\n" for n in range(2, 5))
    events = history("rerun", RUN + answered + "6.0 invoke B\n6.1 raise B error=InProgressError ran=false")
    (violation,) = check(events, PROMISES)
    short = shortest(events, PROMISES, violation)
    assert [f"{event.what} {event.call}" for event in short] == [
        "invoke A", "begin A", "end A", "return A", "invoke B", "raise B", "told ",
    ]  # fmt: skip


def test_two_hundred_claims_at_once_are_judged() -> None:
    """One claims and completes, the others see it in progress, then its value."""
    ops = [Op("claim", "A", 0.0, 1.0), Op("complete", "A", 2.0, 3.0, "v")]
    ops += [Op("in progress", f"B{n}", 0.0, 2.5) for n in range(200)]
    ops += [Op("replay", f"C{n}", 0.0, 3.0, "v") for n in range(200)]
    ops += [Op("claim", f"D{n}", 0.0) for n in range(20)]  # of these, nobody knows
    assert possible(ops, lambda owner, op: False) is True
    assert possible([*ops, Op("replay", "E", 0.0, 3.0, "w")], lambda owner, op: False) is False


def test_a_search_that_is_too_long_is_called_undecided() -> None:
    ops = [Op("claim", f"A{n}", 0.0, 9.0) for n in range(12)] + [Op("replay", "B", 0.0, 9.0, "v")]
    assert possible(ops, lambda owner, op: True, limit=100) is None
