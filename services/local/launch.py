"""How a child of `perennial up` becomes a program: drop rights, tie its life to ours, exec.

Run as a script by an interpreter without site packages (`python -I -S launch.py …`), so it imports the
standard library only. A launcher of its own, because `preexec_fn` is unsafe beside threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """`launch.py PARENT SIGNAL UID GID PROGRAM ARG…`; UID -1 keeps the user.

    The rights go first: a change of user clears the death signal.
    """
    parent, death_signal, uid, gid = (int(text) for text in argv[1:5])
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent ended before this program began")
    os.execvpe(argv[5], argv[5:], os.environ)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(sys.argv)
