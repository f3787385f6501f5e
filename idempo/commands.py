"""The commands of `idempo`. Needs the extra `cli`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from idempo.errors import IdempoError
from idempo.inspection import Inspection, Wanted, inspect
from idempo.presentation import cell, described, print_table, without_password
from idempo.purging import Progress, purging
from idempo.records import Record

__all__ = ["app", "run"]

app = typer.Typer(
    name="idempo",
    help="Look after the records of idempo, and see it at work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="postgresql+psycopg://, mysql+pymysql://, sqlite:/// or redis://",
        show_default=False,
    ),
]
TableName = Annotated[str, typer.Option("--table", help="The records table of a SQL database.")]
Prefix = Annotated[str, typer.Option(help="The start of the names of keys in a Redis.")]
Operation = Annotated[str | None, typer.Option(help="Only records of this operation.")]
StateName = Annotated[
    Literal["running", "orphan", "completed", "failed"] | None,
    typer.Option(help="Only records in this state."),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Print no more records than that.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
WithResult = Annotated[
    bool, typer.Option("--result", help="Print the stored result too, where it can be read.")
]

_SHOWN = 100  # records of one key: scopes and operations


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. An error is one line on stderr."""
    try:
        app(list(arguments), prog_name="idempo")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not _expected(error):
            raise
        print(_line(error), file=sys.stderr)
        return 1
    return 0


def _expected(error: BaseException) -> bool:
    """True for what goes wrong outside: stores, files, arguments. Anything else is a bug, and shows where it is."""
    from idempo.demo.crew import WorkersError

    root = type(error).__module__.partition(".")[0]
    return isinstance(error, IdempoError | OSError | WorkersError) or root in ("sqlalchemy", "redis")


def _line(error: BaseException) -> str:
    """One line: the type and what it says, without statements, parameters and passwords."""
    said = getattr(error, "orig", None) or error
    text = " ".join(str(said).split())
    return without_password(f"{type(error).__name__}: {text}")


@contextmanager
def _store(url: str, table: str, prefix: str) -> Iterator[Inspection]:
    store = inspect(url, table=table, prefix=prefix)
    try:
        yield store
    finally:
        store.close()


# ---------------------------------------------------------------------------------------- commands


@app.command()
def demo(
    source: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="FILE", help="Payment callbacks as JSON lines; - for stdin. Default: a sample."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="The store. Default: a SQLite file that is removed afterwards.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that handle callbacks.")] = 4,
    kills: Annotated[int, typer.Option(min=0, max=1000, help="How many of them to kill on the way.")] = 7,
    seed: Annotated[int, typer.Option(help="Which of them, and when.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Handle payments in processes that get killed.

    Reads payment callbacks, handles them in several processes, kills some, and reconciles the ledger.

    A line is {"payment_no": "P-1", "event_id": "E-1", "amount": "12.34", "status": "paid"}, all of them strings. A
    payment number that comes again with the same amount is replayed; with another amount it is refused: the first
    line of the input holds, or what the store has from an earlier run. Lines that are no such callback, or whose status
    is not "paid", are malformed: they are reported by number and skipped. Blank lines do not count.

    Always: received = malformed + executed + replayed + refused. `executed` counts the new entries in the ledger, so
    a second run on the same store executes nothing. The ledger is the table, or the Redis hash, idempo_demo_ledger.
    The exit code is 0 only if the ledger agrees with the input.
    """
    from idempo.demo.run import run_demo
    from idempo.demo.screen import as_json as encoded
    from idempo.demo.screen import summary

    if source not in (None, "-") and (not Path(str(source)).exists() or Path(str(source)).is_dir()):
        raise typer.BadParameter(f"there is no file {source}", param_hint="--input")
    report = run_demo(source, url, workers=workers, kills=kills, seed=seed)
    if as_json:
        print(encoded(report))
        for problem in report.problems[:100]:
            print(problem, file=sys.stderr)
    else:
        summary(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def init(
    url: Url,
    ddl: Annotated[bool, typer.Option("--ddl", "--dry-run", help="Only print the statements.")] = False,
    table: TableName = "idempo_records",
) -> None:
    """Create the records table, and print its DDL.

    A table that exists is left as it is. Redis needs none.
    """
    with _store(url, table, "idempo:") as store:
        statements = store.schema()
        if not statements:
            print("nothing to create: Redis keeps each record under a key of its own", file=sys.stderr)
            return
        if not ddl:
            store.create()
        print(statements, end="")
        if not ddl:
            print(f"the table {table} is there", file=sys.stderr)


@app.command("list")
def list_records(
    url: Url,
    operation: Operation = None,
    state: StateName = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    with_result: WithResult = False,
    table: TableName = "idempo_records",
    prefix: Prefix = "idempo:",
) -> None:
    """List records within their retention.

    Those that are kept longest come first; on Redis they come in no order.
    """
    records = _read(url, table, prefix, Wanted(limit, operation, state))
    if as_json:
        print(json.dumps([described(record, with_result) for record in records], indent=2))
        return
    if records:
        print_table(records, with_result)
    limited = ", and there may be more: --limit" if len(records) == limit else ""
    print(f"{len(records)} record{'' if len(records) == 1 else 's'}{limited}", file=sys.stderr)


@app.command()
def show(
    url: Url,
    key: Annotated[str, typer.Argument(help="The business key as people read it.", show_default=False)],
    operation: Operation = None,
    as_json: AsJson = False,
    with_result: WithResult = False,
    table: TableName = "idempo_records",
    prefix: Prefix = "idempo:",
) -> None:
    """Show all records of one business key.

    The key is written as `idempo list` prints it. Fails if there is none.
    """
    records = _read(url, table, prefix, Wanted(_SHOWN, operation, key=key))
    if as_json:
        print(json.dumps([described(record, with_result) for record in records], indent=2))
    for number, record in enumerate([] if as_json else records):
        print("\n" * bool(number), end="")
        for name, value in described(record, with_result).items():
            print(f"{name.replace('_', ' '):12} {cell(value)}")
    if not records:
        print(f"there is no record of the key {key!r}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def purge(
    url: Url,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Records per transaction.")] = 1000,
    pause: Annotated[float, typer.Option(min=0, max=3600, help="Seconds between batches.")] = 0.005,
    at_most: Annotated[int | None, typer.Option(min=1, help="End after so many.", show_default=False)] = None,
    table: TableName = "idempo_records",
) -> None:
    """Delete the records whose retention is over.

    Goes on in batches until one is not full, and says how many there were. On Redis they expire by themselves. What
    others have locked is left for the next time. An interrupt ends it after the batch.
    """
    with _store(url, table, "idempo:") as store:
        if not store.schema():
            print("nothing to purge: Redis lets records expire by itself", file=sys.stderr)
            return
        with Progress() as progress:
            for deleted in purging(store, batch, pause, at_most):
                progress.add(deleted)


@app.command()
def doctor(
    url: Url,
    keep: Annotated[str, typer.Option(help="The keep= of your decorators: seconds, or 12h, 7d, 2w.")] = "7d",
    retries_over: Annotated[
        list[str] | None,
        typer.Option(
            help="Who repeats, and so for how long: stripe, adyen, ..., or 30d. Several times if need be."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail for warnings, and for what is unknown, too.")
    ] = False,
    as_json: AsJson = False,
    table: TableName = "idempo_records",
    prefix: Prefix = "idempo:",
) -> None:
    """Look for what breaks promises in production, and say how to mend it.

    It changes nothing in the store. The exit code is 1 if there is a danger: a promise can be broken, or no call can
    succeed.
    """
    from dataclasses import asdict

    from idempo.doctor import examine
    from idempo.doctor.findings import LEVELS
    from idempo.doctor.retries import seconds_of

    over = retries_over or []
    found = examine(url, table=table, prefix=prefix, keep=seconds_of(keep), retries_over=over)
    if as_json:
        print(without_password(json.dumps([asdict(one) for one in found], indent=2)))
    for one in [] if as_json else found:
        print(f"{one.level:8} {one.check}: {cell(without_password(one.says))}")
        print(f"{'':8} mend: {cell(without_password(one.mend))}\n" * bool(one.mend), end="")
    counted = {level: sum(one.level == level for one in found) for level in LEVELS}
    print(", ".join(f"{count} {level}" for level, count in counted.items()), file=sys.stderr)
    failed = LEVELS[:-1] if strict else LEVELS[:1]
    raise typer.Exit(1 if any(counted[level] for level in failed) else 0)


def _read(url: str, table: str, prefix: str, wanted: Wanted) -> list[Record]:
    with _store(url, table, prefix) as store:
        records = store.records(wanted)
        if store.partial:
            print(
                "the store has too many keys to look at all of them: there may be more records",
                file=sys.stderr,
            )
        return records
