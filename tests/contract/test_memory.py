"""The promises, kept by `Memory`."""

from idempo import Memory
from idempo.contracts import Strategy
from idempo.testing import LedgerContract


class TestMemory(LedgerContract):
    def make(self) -> Strategy:
        return Memory()


class TestMemoryAsync(TestMemory):
    colour = "async"
