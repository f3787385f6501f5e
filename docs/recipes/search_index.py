"""A table and its search index: the version of each row decides, whatever order its changes arrive in.

    python search_index.py --index postgresql+psycopg://localhost/search

The changes of a table, deletions among them, are delivered several times each, in any order, by several threads. The
index, a table of another database, ends as the table is. Prints what came of it as JSON; exit code 1 if that is wrong.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import String, create_engine, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from idempo import INJECTED, MonotonicVersion, UniqueInsert, idempotent


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "document"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


@dataclass(frozen=True)
class Change:
    """What the table told: a row in its new version, or that it is gone."""

    id: str
    version: int
    text: str | None


class Index:
    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, pool_size=20)
        Base.metadata.create_all(self.engine)
        records = UniqueInsert(sessionmaker(self.engine), join="session")
        records.create_schema()

        @idempotent(
            key="{change.id}:{change.version}",
            keep=timedelta(days=30),  # how long a deleted document stays deleted, whatever comes late
            using=MonotonicVersion(
                records, entity="{change.id}", version="{change.version}", stale="superseded"
            ),
            name="index.apply",
        )
        def apply(change: Change, session: Session = INJECTED) -> Literal["applied", "superseded"]:
            session.execute(delete(Document).where(Document.id == change.id))
            if change.text is not None:
                session.add(Document(id=change.id, text=change.text))
            return "applied"

        self.apply = apply

    def documents(self) -> dict[str, str]:
        with Session(self.engine) as session:
            return {one.id: one.text for one in session.scalars(select(Document))}


def history(rng: random.Random) -> tuple[list[Change], dict[str, str]]:
    """Change a table; return what it told, and how it is at the end."""
    table: dict[str, str] = {}
    versions: dict[str, int] = {}
    changes = []
    for step in range(200):
        row = f"row {rng.randrange(12)}"
        versions[row] = versions.get(row, 0) + 1  # a version goes on over a deletion
        if row in table and rng.random() < 0.3:
            del table[row]
            changes.append(Change(row, versions[row], None))
        else:
            table[row] = f"text {step}"
            changes.append(Change(row, versions[row], table[row]))
    return changes, table


def deliver(index: Index, changes: Sequence[Change], rng: random.Random) -> list[str]:
    """Three deliveries of each change, in any order, eight at a time."""
    deliveries = [*changes, *changes, *changes]
    rng.shuffle(deliveries)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(index.apply, deliveries))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    index = Index(given.index)
    changes, table = history(rng)
    answers = deliver(index, changes, rng)
    found = index.documents()
    late = index.apply(Change(changes[0].id, 0, "from long ago"))
    index.engine.dispose()
    told = {
        "changes": len(changes),
        "deliveries": len(answers),
        "answers": sorted(set(answers)),
        "rows": len(table),
        "documents": len(found),
        "index_is_the_table": found == table,
        "a_late_one": late,
    }
    print(json.dumps(told, indent=2))
    return 0 if found == table and late == "superseded" else 1


if __name__ == "__main__":
    sys.exit(main())
