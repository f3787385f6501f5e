"""Exec a server so that it dies with whoever started it.

Run as `python leash.py UID PARENT COMMAND...`. This is a process of its own, not a `preexec_fn`, because
running Python between fork and exec of a process with threads can deadlock. The user is changed in here, when
the interpreter is already loaded, because that user may be unable to enter the interpreter's folder.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """End this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            sys.exit("the starter is gone")


def main() -> None:
    user, parent, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    tie(parent)  # after setuid, which undoes it
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
