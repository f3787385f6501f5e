"""What runs in other processes: a module of its own, so that it starts quickly."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from idempo import UniqueInsert, idempotent

PROCESSES, CALLS, KEYS = 6, 50, 20


def embedded_worker(folder: str, number: int, start: Any) -> None:
    """Calls the embedded default: no using=, the file in the working directory."""
    os.chdir(folder)

    @idempotent(key="{order_no}", name="many", wait=60)
    def f(order_no: str) -> list[int]:
        with open("effects", "a") as effects:
            effects.write(order_no + "\n")
        return [number, os.getpid()]

    _call_all(folder, number, start, f)


def joined_worker(folder: str, number: int, start: Any) -> None:
    engine = create_engine(f"sqlite:///{folder}/shop.db", connect_args={"timeout": 60})

    @idempotent(key="{order_no}", using=UniqueInsert(engine, join="session"), name="many", wait=60)
    def f(order_no: str, session: Session | None = None) -> list[int]:
        assert session is not None
        session.execute(text("INSERT INTO orders (order_no) VALUES (:no)"), {"no": order_no})
        return [number, os.getpid()]

    _call_all(folder, number, start, f)
    engine.dispose()


def _call_all(folder: str, number: int, start: Any, f: Callable[[str], Any]) -> None:
    random.seed(number)
    start.wait()
    seen = []
    for _ in range(CALLS):
        key = f"K-{random.randrange(KEYS)}"
        seen.append([key, f(key)])
    Path(folder, f"seen-{number}").write_text(json.dumps(seen))
