"""The command `idempo`. It needs the extra `cli`; the commands themselves are in `commands`.

This module imports nothing of them by itself: the demo's workers import it, as the script that they were started by.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default that of the process. Always raises `SystemExit`."""
    try:
        from idempo.commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print("the command idempo needs an extra: pip install 'idempo[cli]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
