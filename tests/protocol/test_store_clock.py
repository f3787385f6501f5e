"""What a process knows of a store's clock: a jump is told from a delay, and older leases are counted without it."""

import pytest

from idempo.clocks import StoreClock

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
LEASE = 30 * SECOND


class Conversation:
    """A store and a process with a clock each, and what the process hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.there = 1000.0, START
        self.clock = StoreClock()
        monkeypatch.setattr("time.monotonic", lambda: self.here)

    def wait(self, seconds: float) -> None:
        self.here += seconds
        self.there += int(seconds * SECOND)

    def ask(self, *, going: float = 0.001, coming: float = 0.001) -> int:
        """The store's time, as it said it, `coming` seconds before it was heard."""
        asked = self.here
        self.wait(going)
        said = self.there
        self.wait(coming)
        self.clock.hear(said, asked)
        return said

    def left(self, since: int) -> float:
        """Seconds that are left of a lease of half a minute."""
        now = self.ask()
        return self.clock.lease_left(now, since, since + LEASE) / SECOND


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Conversation:
    return Conversation(monkeypatch)


def test_a_lease_is_counted_without_a_jump_that_came_after_it_began(talk: Conversation) -> None:
    since = talk.ask()
    talk.wait(10)
    talk.there += 3600 * SECOND
    assert talk.left(since) == pytest.approx(20, abs=0.1)
    talk.wait(19)
    assert talk.left(since) > 0
    talk.wait(2)
    assert talk.left(since) <= 0


def test_a_lease_is_counted_without_the_jump_though_it_began_after_the_last_answer(
    talk: Conversation,
) -> None:
    talk.ask()
    talk.wait(100)
    since = talk.there
    talk.wait(1)
    talk.there += 3600 * SECOND
    assert talk.left(since) == pytest.approx(29, abs=0.1)


def test_jumps_add_up(talk: Conversation) -> None:
    since = talk.ask()
    for _ in range(3):
        talk.there += 600 * SECOND
        talk.ask()
    assert talk.left(since) == pytest.approx(30, abs=0.1)


def test_a_lease_that_began_after_the_jump_is_counted_by_the_clock(talk: Conversation) -> None:
    talk.ask()
    talk.there += 3600 * SECOND
    since = talk.ask()
    talk.wait(40)
    assert talk.left(since) == pytest.approx(-10, abs=0.1)


def test_no_more_is_left_than_the_lease_is_long(talk: Conversation) -> None:
    since = talk.ask()
    talk.there += 3600 * SECOND
    assert talk.left(since) <= LEASE / SECOND


@pytest.mark.parametrize(("going", "coming"), [(100.0, 0.0), (0.0, 100.0), (50.0, 50.0)])
def test_an_answer_that_takes_long_is_no_jump(talk: Conversation, going: float, coming: float) -> None:
    since = talk.ask()
    talk.ask(going=going, coming=coming)
    assert talk.left(since) == pytest.approx(-70, abs=0.1)


def test_an_answer_to_an_older_question_changes_nothing(talk: Conversation) -> None:
    since, asked = talk.ask(), talk.here
    said = talk.there
    talk.wait(1)
    talk.there += 3600 * SECOND
    talk.ask()
    talk.clock.hear(said, asked)  # asked before, answered behind
    assert talk.left(since) == pytest.approx(29, abs=0.1)


def test_a_clock_that_is_slewed_does_not_jump(talk: Conversation) -> None:
    since = talk.ask()
    for _ in range(24):
        talk.wait(3600)
        talk.there += int(1.8 * SECOND)
        talk.ask()
    assert talk.left(since) < -86_000


def test_a_clock_that_is_set_back_ends_what_was_known(talk: Conversation) -> None:
    since = talk.ask()
    talk.there += 3600 * SECOND
    talk.ask()
    talk.there -= 7200 * SECOND
    talk.ask()
    talk.wait(7000)
    assert talk.left(since) <= 30
    assert talk.left(talk.there - 2 * LEASE) < 0  # not held for the hour of the jump


def test_a_lease_that_its_owner_ended_is_over(talk: Conversation) -> None:
    since = talk.ask()
    talk.there += 3600 * SECOND
    now = talk.ask()
    assert talk.clock.lease_left(now, since, since) <= 0


def test_of_many_jumps_the_last_ones_are_remembered(talk: Conversation) -> None:
    first = last = talk.ask()
    for _ in range(100):
        last = talk.ask()
        talk.there += 3600 * SECOND
    assert talk.left(last) == pytest.approx(30, abs=0.1)
    assert len(talk.clock._jumps) < 10
    assert talk.left(first) < 0
