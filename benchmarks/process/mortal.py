"""Imported by a process that is to end with its parent: that is all this import does.

For a fork server, which takes modules to import and nothing else. It notices that its worker is gone only when it has
imported them all, which takes seconds of a core that the next run wants.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1

if multiprocessing.parent_process() is None:  # it is no child that reads this for another reason
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # the parent has died already, before it could be asked for
