"""The models of the protocol, verified by spin: what holds in every order of events, and which mistakes spin finds.

Only assertions and cycles: a model is right or wrong by itself. Said in words in docs/explanation/model.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.provide.spin import Checker, checker

MODELS = Path(__file__).parent
DEPTH = 20_000  # steps of one path; more is a failure, never a silent bound
SECONDS = 60

SAFETY = ("-DSAFETY", "-DCOLLAPSE"), ()
# Every cycle that weak fairness allows is one in which a caller waits for ever: nothing in the models is progress.
CYCLES = ("-DNP", "-DNFAIR=9", "-DCOLLAPSE"), ("-l", "-f")


@dataclass(frozen=True)
class Verdict:
    """What pan printed."""

    text: str

    @property
    def complete(self) -> bool:
        """True if it has seen all there is to see, within its depth."""
        cut = "max search depth too small", "Search not completed", "out of memory"
        return "errors: 0" in self.text and not any(word in self.text for word in cut)

    @property
    def found(self) -> str:
        """The first error, or ""."""
        error = re.search(r"^pan:1: (.*) \(at depth \d+\)", self.text, re.MULTILINE)
        return "".join(error[1].split()) if error else ""

    @property
    def unreached(self) -> list[str]:
        """Places in the model that no path comes to."""
        return [line for line in re.findall(r"\.pml:(\d+), state", self.text) if line]


@pytest.fixture(scope="module")
def spin() -> Checker:
    return checker()


def verify(
    spin: Checker,
    folder: Path,
    model: str,
    defined: str,
    how: tuple[tuple[str, ...], tuple[str, ...]] = SAFETY,
) -> Verdict:
    compiled, run = how
    spin.build(MODELS / model, folder, [f"-D{one}" for one in defined.split()], compiled)
    return Verdict(spin.run(["./pan", f"-m{DEPTH}", *run], folder, SECONDS))


ALL = "LOSSES=1 CRASHES=1 FAILURES=1 FORGETS=1 EXPIRY=1"
RIGHT = [
    ("claim.pml", "LOSSES=2 FAILURES=2"),
    ("claim.pml", "OWNERS=3 LOSSES=1 FAILURES=2"),
    ("claim.pml", "OWNERS=3 EXPIRY=1"),
    ("claim.pml", "OWNERS=3 LOSSES=1 CRASHES=1 FAILURES=1"),
    ("claim.pml", "LOSSES=1 CRASHES=1 FAILURES=1 EXPIRY=1 REFUSE=1"),
    ("joined.pml", "OWNERS=3 FAILURES=2"),
]


@pytest.mark.parametrize(("model", "defined"), RIGHT)
def test_no_order_of_events_breaks_a_promise(spin: Checker, tmp_path: Path, model: str, defined: str) -> None:
    verdict = verify(spin, tmp_path, model, defined)
    assert verdict.complete, verdict.text


@pytest.mark.parametrize(
    ("model", "defined", "apart_from"),
    [
        # Nobody refuses an orphan here.
        ("claim.pml", ALL, ["refused:"]),
        ("joined.pml", "OWNERS=3 FAILURES=1 CRASHES=1 CUTS=1", []),
    ],
)
def test_with_everything_going_wrong_all_promises_hold_and_every_line_of_the_model_is_reached(
    spin: Checker, tmp_path: Path, model: str, defined: str, apart_from: list[str]
) -> None:
    verdict = verify(spin, tmp_path, model, defined)
    assert verdict.complete, verdict.text
    lines = (MODELS / model).read_text().splitlines()
    known = [number for label in apart_from for number in within(lines, label)]
    assert [line for line in verdict.unreached if int(line) not in known] == []


def within(lines: list[str], label: str) -> range:
    """The numbers of the lines from a label to the next one."""
    start = lines.index(label) + 1
    return range(start, next(n for n in range(start, len(lines)) if re.match(r"\w+:", lines[n])) + 1)


def test_an_orphan_is_refused_where_that_is_asked_for(spin: Checker, tmp_path: Path) -> None:
    lines = (MODELS / "claim.pml").read_text().splitlines()
    verdict = verify(spin, tmp_path, "claim.pml", "CRASHES=1 REFUSE=1")
    assert verdict.complete, verdict.text
    assert not {int(line) for line in verdict.unreached} & set(within(lines, "refused:"))


@pytest.mark.parametrize(
    ("model", "defined"),
    [
        ("claim.pml", "LOSSES=1 FAILURES=1"),
        ("claim.pml", "LOSSES=1 CRASHES=1 FAILURES=1"),
        ("claim.pml", "LOSSES=1 EXPIRY=1"),
        ("joined.pml", "OWNERS=3 FAILURES=1 CRASHES=1 CUTS=1"),
    ],
)
def test_under_weak_fairness_nobody_waits_for_ever(
    spin: Checker, tmp_path: Path, model: str, defined: str
) -> None:
    verdict = verify(spin, tmp_path, model, defined, CYCLES)
    assert verdict.complete, verdict.text


SINGLE = "!(((state==1)&&alive))"
GROWING = "(fence>newest)"
POWERLESS = "(kept==(holder==me))"
VARIANTS = [
    ("claim.pml", "NO_OWNER_CHECK EXPIRY=1", POWERLESS),
    ("claim.pml", "RELEASE_BY_ANYONE EXPIRY=1 FAILURES=1", "(holder==me)"),
    ("claim.pml", "FENCE_RESET=RELEASED FAILURES=1", GROWING),
    ("claim.pml", "FENCE_RESET=ABSENT FORGETS=1", GROWING),
    ("claim.pml", "FENCE_RESET=RUNNING EXPIRY=1", GROWING),
    ("claim.pml", "CLIENT_CLOCK_LEASE", SINGLE),
    ("claim.pml", "WAITER_DELETES_CLAIM", POWERLESS),
    ("claim.pml", "RECORD_AFTER_EFFECT_ONLY", "(effects==1)"),
    ("claim.pml", "TAKEOVER_WITHOUT_OVER OWNERS=3 CRASHES=1", SINGLE),
    ("claim.pml", "NO_FENCE_CHECK_IN_TABLE EXPIRY=1", "(number[me]>=written)"),
    ("claim.pml", "FORGET_IN_TWO_STEPS FORGETS=1 EXPIRY=1", SINGLE),
    ("joined.pml", "VIOLATION_IS_SUCCESS FAILURES=1", "committed)&&(effects==1)"),
    ("joined.pml", "RECORD_AFTER_COMMIT CRASHES=1", "(effects==1)"),
    ("joined.pml", "CUT_IS_FAILURE CUTS=1", "!(asked_to_commit[me])"),
]


@pytest.mark.parametrize(("model", "defined", "promise"), VARIANTS)
def test_spin_finds_the_mistake_that_is_built_in(
    spin: Checker, tmp_path: Path, model: str, defined: str, promise: str
) -> None:
    found = verify(spin, tmp_path, model, defined).found
    assert found.startswith("assertionviolated")
    assert promise in found


def test_spin_finds_that_a_caller_waits_for_itself_where_its_own_claim_is_not_recognised(
    spin: Checker, tmp_path: Path
) -> None:
    found = verify(spin, tmp_path, "claim.pml", "RETRY_NOT_RECOGNISED LOSSES=1", CYCLES).found
    assert found == "non-progresscycle"


def test_a_bound_that_cuts_the_search_is_not_taken_for_a_verdict(spin: Checker, tmp_path: Path) -> None:
    spin.build(MODELS / "claim.pml", tmp_path, ["-DEXPIRY=1"], SAFETY[0])
    assert not Verdict(spin.run(["./pan", "-m20"], tmp_path, SECONDS)).complete
