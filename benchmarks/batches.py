"""Many calls in one batch, `f.many(...)`, against the same calls one by one."""

from dataclasses import replace
from typing import Any

from benchmarks.method import Measured, Plan, Subject, fresh_keys, interleave, ordered
from benchmarks.sections import Section
from benchmarks.stores import Stores
from idempo import UniqueInsert
from idempo.steps import run

__all__ = ["measure"]

TARGET = 10.0


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title; none while there is no `many`."""
    section = Section(stores, "sync")
    try:
        ledgers = {
            "RedisCache": section.cache(),
            "UniqueInsert": UniqueInsert(section.engine(stores.postgres)),
        }
        functions = {name: section.decorated(ledger) for name, ledger in ledgers.items()}
        if not all(hasattr(f, "many") for f in functions.values()):
            return {"batches: not there, a decorated function has no `many`": []}
        found: list[Measured] = []
        for name, f in functions.items():
            found += against_single(name, f, plan)
        return {f"calls per second, in batches of {plan.batch}": found}
    finally:
        run(section.closed())


def against_single(name: str, f: Any, plan: Plan) -> list[Measured]:
    """Both rows measure a whole batch; what is reported is calls per second."""
    keys = fresh_keys()

    def one_by_one(batch: list[tuple[str]]) -> None:
        for arguments in batch:
            f(*arguments)

    def batch() -> list[tuple[str]]:
        return [(keys(),) for _ in range(plan.batch)]

    single = f"{name}, one by one"
    subjects = [Subject(single, one_by_one, batch), Subject(f"{name}, f.many", f.many, batch)]
    alone, together = interleave(subjects, Plan(rounds=max(1, plan.rounds // 3), block=1, seed=plan.seed))
    return [rate(alone, plan), against(rate(together, plan), rate(alone, plan))]


def rate(row: Measured, plan: Plan) -> Measured:
    rounds = tuple(plan.batch / (one / 1e6) for one in row.rounds)
    return replace(
        row,
        calls=row.calls * plan.batch,
        median=plan.batch / (row.median / 1e6),
        p99=None,
        rounds=rounds,
        unit="calls/s",
        at_least=True,
    )


def against(row: Measured, floor: Measured) -> Measured:
    ratios = [one / base for one, base in zip(row.rounds, floor.rounds, strict=True)]
    ratio, low, high = ordered(ratios)
    return replace(row, floor=floor.name, ratio=ratio, low=low, high=high, target=TARGET)
