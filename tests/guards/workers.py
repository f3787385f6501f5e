"""What runs in other processes: a module of its own, so that it starts quickly."""

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, insert
from sqlalchemy.orm import Session

from idempo import StateConflictError, StateGuard, idempotent

METADATA = MetaData()
ORDERS = Table("orders", METADATA, Column("id", Integer, primary_key=True), Column("status", String(20)))
PAYMENTS = Table(
    "payments",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("order_id", Integer),
    Column("no", String(100)),
)
FLOW = {"pending": ["paid", "cancelled"], "paid": ["shipped"]}
SECONDS = 60


def engine_for(url: str) -> Engine:
    options: Any = {"connect_args": {"timeout": SECONDS}} if url.startswith("sqlite") else {}
    return create_engine(url, pool_size=6, max_overflow=0, pool_timeout=SECONDS, **options)


def guarded(engine: Engine, to: str, name: str) -> Any:
    """The function that takes an order to this state, which it notes down."""
    guard = StateGuard(ORDERS.c.status, {ORDERS.c.id: "{order_id}"}, FLOW, to, engine=engine)

    @idempotent(key="{payment}", using=guard, name=f"{name}.{to}", wait=SECONDS)
    def f(order_id: int, payment: str, session: Session | None = None) -> list[str]:
        assert session is not None
        session.execute(insert(PAYMENTS).values(order_id=order_id, no=payment))
        return [to, payment]

    return f


def serve(url: str, name: str, work: list[tuple[str, int, str]], start: Any, answers: Any) -> None:
    """Do all `work` (state, order, key) at once, in threads, when all processes are ready; answer with what came."""
    engine = engine_for(url)
    made = {to: guarded(engine, to, name) for to in ("paid", "cancelled")}
    found: list[Any] = []
    ready = threading.Barrier(len(work) + 1)

    def one(to: str, order: int, key: str) -> None:
        ready.wait(SECONDS)
        found.append((key, answer(lambda: made[to].outcome(order, key))))

    threads = [threading.Thread(target=one, args=task) for task in work]
    for thread in threads:
        thread.start()
    start.wait(SECONDS)
    ready.wait(SECONDS)
    for thread in threads:
        thread.join()
    answers.put(found)
    engine.dispose()


def answer(call: Callable[[], Any]) -> Any:
    try:
        outcome = call()
    except StateConflictError as error:
        return "refused", error.verdict, error.state
    except Exception as error:  # the test shows it
        return "failed", repr(error), repr(error.__cause__)
    return ("replayed" if outcome.replayed else "ran"), *outcome.value
