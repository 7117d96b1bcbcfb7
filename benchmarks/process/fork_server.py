"""A process of a worker's own, free of threads and of device state, that its helpers are forked from."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver


def prepare(module: str) -> None:
    """Begin to import a module, and torch with it, in the process that helpers are forked from; this one goes on.

    A worker has threads, and perhaps a GPU, so it cannot be forked itself; and its helpers would hold its connections
    open after its death. The fork server ends with the worker.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.process.mortal", module, "hydra"])
    multiprocessing.forkserver.ensure_running()
