"""What joined records and guards add to a business transaction on PostgreSQL, and the four production combinations.

The floor of each is the same transaction without idempo: one UPDATE of one row, by SQLAlchemy. What a joined record
adds is told apart: the whole less that transaction, as a share of the two statements by hand that a record takes in
transactions of its own.
"""

from collections.abc import Callable
from typing import Any

from benchmarks import business, floors
from benchmarks.method import Measured, Plan, Subject, added
from benchmarks.sections import COLOURS, Section, measured, titled
from benchmarks.stores import Stores
from idempo import (
    MonotonicVersion,
    OneTimeToken,
    ReadOnly,
    SelectForUpdate,
    StateGuard,
    UniqueInsert,
    VersionCheck,
)

__all__ = ["measure"]

PSYCOPG = "two statements by psycopg"
ALONE = "the business transaction alone"
READ = "the read alone"
JOINED = "UniqueInsert(join=)"
SUBJECTS = 16


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    found = {}
    for colour in COLOURS:
        rows = business.create(stores, SUBJECTS * ((plan.rounds + 2) * plan.block + 100))

        def make(section: Section, rows: Callable[[], int] = rows) -> None:
            fill(section, rows)

        found[titled("PostgreSQL, in the business transaction", colour)] = with_added(
            measured(make, stores, colour, plan)
        )
    return found


def with_added(rows: list[Measured]) -> list[Measured]:
    """The rows, and what a joined record adds to the transaction."""
    named = {row.name: row for row in rows}
    whole, without = named[f"{JOINED}: first run"], named[ALONE]
    first, replay = named[f"{PSYCOPG}: first run"], named[f"{PSYCOPG}: replay"]
    # A replay does nothing of the business transaction, so there is nothing to take off.
    again = named[f"{JOINED}: replay"]
    nothing = Measured("nothing", 0, 0.0, None, rounds=(0.0,) * len(again.rounds), requests=0)
    return [
        *rows,
        added(f"added by {JOINED}: first run", whole, without, first, 0.6),
        added(f"added by {JOINED}: replay", again, nothing, replay, 1.25),
    ]


def fill(section: Section, rows: Callable[[], int]) -> None:
    by_hand = floors.postgres_by_hand if section.colour == "sync" else floors.postgres_by_hand_async
    section.by_hand(PSYCOPG, by_hand(section.stores.libpq))
    engine = section.engine(section.stores.postgres)
    write, read = business.writing(section), business.reading(section)
    for name, body in ((ALONE, write), (READ, read)):
        section.subjects.append(Subject(name, business.alone(section, body, engine), rows))
    joined = UniqueInsert(engine, join="session")
    where = business.WHERE
    guards: dict[str, tuple[Any, ...]] = {
        JOINED: (joined,),
        "StateGuard": (state_guard(engine),),
        "VersionCheck": (VersionCheck(business.ROWS.c.version, where, engine=engine),),
        "SelectForUpdate": (SelectForUpdate(business.ROWS, where, engine=engine),),
        "RedisCache, UniqueInsert(join=)": (section.cache(), joined),
        # The four production combinations; that of payment callbacks is StateGuard.
        "stock: RedisCache, VersionCheck": (
            section.cache(),
            VersionCheck(business.ROWS.c.version, where, engine=engine),
        ),
        "search index: MonotonicVersion(UniqueInsert(join=))": (
            MonotonicVersion(joined, entity="{row}", version=lambda row: 1),
        ),
    }
    for name, using in guards.items():
        f = section.decorated(*using, body=write, key="{row}")
        note = "the combination for payment callbacks" if name == "StateGuard" else ""
        section.both(name, f, floor=ALONE, keys=rows, note=note)
    submitted(section, joined, write, rows)
    f = section.decorated(ReadOnly(engine), body=read, key="{row}")
    section.subjects.append(Subject("ReadOnly", f, rows, READ, note="records nothing: each call reads"))


def state_guard(engine: Any) -> StateGuard:
    return StateGuard(business.ROWS.c.status, business.WHERE, business.FLOW, "paid", engine=engine)


def submitted(
    section: Section, joined: UniqueInsert, write: Callable[..., Any], rows: Callable[[], int]
) -> None:
    """Order submit: a token, which is issued before and not measured, and a number that is unique."""
    tokens = OneTimeToken(section.cache(), key="{token}")
    f = section.decorated(tokens, joined, body=write, key="{row}")

    def issued() -> Any:
        return rows(), tokens.issue()

    async def issued_async() -> Any:
        return rows(), await tokens.issue()

    keys = issued if section.colour == "sync" else issued_async
    name = "order submit: OneTimeToken(RedisCache), UniqueInsert(join=)"
    section.both(name, lambda key: f(*key), floor=ALONE, keys=keys, note="issued before, not measured")
