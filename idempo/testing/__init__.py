"""The promises as test suites that anybody can subclass: what a ledger must do to be one.

A subclass names its colour and returns a strategy; pytest finds the rest:

    class TestMemory(LedgerContract):
        colour = "sync"

        def make(self) -> Strategy:
            return Memory()

The tests are steps (see `idempo.steps`): `yield f("A")` is a plain call in one colour and an awaited one in the other.
Nothing is decided by timing: what a test waits for, it asks the ledger for.
"""

from __future__ import annotations

from idempo.testing.assertions import assert_runs_once
from idempo.testing.batching import BatchingContract
from idempo.testing.clocks import Clock
from idempo.testing.crashes import Crashed, CrashingLedger, LostError
from idempo.testing.issuing import IssuingContract
from idempo.testing.ledgers import LedgerContract
from idempo.testing.promises import PromiseContract
from idempo.testing.schedules import FAULTS, Failed, Schedules, check_promises, explore
from idempo.testing.stepping import LEASE, Blocked, Caller, Fault, Step, Stepping, World
from idempo.testing.tools import Effects, Gate, drive, driven, ledger_of, new_call

__all__ = [
    "FAULTS",
    "LEASE",
    "BatchingContract",
    "Blocked",
    "Caller",
    "Clock",
    "Crashed",
    "CrashingLedger",
    "Effects",
    "Failed",
    "Fault",
    "Gate",
    "IssuingContract",
    "LedgerContract",
    "LostError",
    "PromiseContract",
    "Schedules",
    "Step",
    "Stepping",
    "World",
    "assert_runs_once",
    "check_promises",
    "drive",
    "driven",
    "explore",
    "ledger_of",
    "new_call",
]
