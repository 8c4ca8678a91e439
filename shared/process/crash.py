"""Where tests may end a process as hard as `kill -9` does, at a named point.

`PERENNIAL_CRASHPOINT=relay.before_send:3` ends the process at the third pass of that point.
`…=segmenter.in_transaction:1:stop` stops it there instead (SIGSTOP), as a frozen machine would.
"""

from __future__ import annotations

import os
import signal


class Crashpoints:
    def __init__(self, spec: str = "") -> None:
        name, _, rest = spec.partition(":")
        count, _, action = rest.partition(":")
        self._name, self._left, self._action = name, int(count or 1), action

    def passing(self, name: str) -> None:
        if name != self._name:
            return
        self._left -= 1
        if self._left == 0:
            if self._action == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(137)


POINTS: Crashpoints = Crashpoints(os.environ.get("PERENNIAL_CRASHPOINT", ""))
