"""Batches that processes of their own put together ahead of time: torch's DataLoader."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.augmentation import Augment, augmentations
from benchmarks.core.config import Variant
from benchmarks.data import Split
from benchmarks.data.batches import Batch, Epoch, Feed
from benchmarks.loader import loaders
from benchmarks.process import fork_server

_PR_SET_PDEATHSIG = 1

Answer = tuple[Tensor, Tensor] | int


class LoaderProcessError(RuntimeError):
    """A loader process has ended before its time."""


class Request(NamedTuple):
    """The samples of one batch."""

    key: int
    """The epoch's."""
    first: int
    """The place of the first sample in the epoch's order."""
    samples: Any
    """Their indices, as a numpy array: a tensor would be sent as a file of shared memory."""


class Weigh:
    """A loader process is asked for the memory that it holds, instead of a batch."""


@loaders.register("processes")
class Processes(Feed):
    """A DataLoader with `workers` processes, each up to `prefetch` batches ahead; with none, it loads in this process.

    A process is asked for whole batches, by their samples' indices, so order and augmentation are those of the other
    loaders. The training set is in memory that all processes share; so are the batches that they make.

    Processes are forked from a server that was started for it: the training worker itself has threads, and connections
    that would outlive it in a fork. They end with the worker, however it ends. A process that dies ends the run within
    some seconds; one that hangs does when `hang_limit_s` is over.

    Persistent processes start before the window. Others start at the first batch of each epoch and end before its last
    is handed out: inside the window, as in a loop over a DataLoader.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        augmentation: Variant,
        *,
        workers: int,
        prefetch: int,
        persistent: bool,
        one_by_one: bool,
        pin_memory: bool,
        non_blocking: bool,
    ) -> None:
        super().__init__(split, device, augmentation, pin_memory=False, non_blocking=non_blocking)
        if workers:
            fork_server.prepare(__name__)
        self.workers, self.prefetch = workers, prefetch
        self.ends_with_epoch = workers > 0 and not persistent
        self._wanted = Wanted()
        self._dataloader: DataLoader[Answer] = DataLoader(
            Stock(split, augmentation, one_by_one=one_by_one),
            batch_size=None,  # the sampler's items are whole batches
            sampler=self._wanted,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_end_with_worker,
            multiprocessing_context="forkserver" if workers else None,
            generator=torch.Generator(),  # it draws seeds for its processes: not from the model's random numbers
            prefetch_factor=prefetch if workers else None,
            persistent_workers=persistent and workers > 0,
        )

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        outstanding: deque[float] = deque()
        answers = self._answers(_requests(epoch, outstanding))
        for answer in answers:
            assert not isinstance(answer, int)
            weight = outstanding.popleft()
            if self.ends_with_epoch and not outstanding:  # as it asks ahead, this is the last
                next(answers, None)
            yield self._sent(*answer, weight)

    def rehearse(self, random: Split, seed: int, weight: float) -> Batch:
        """Start the processes, let each work at full load, and weigh it.

        That is on training data, which goes nowhere; the random batch is made here.
        """
        if self.workers:
            samples = torch.arange(len(random)).numpy()
            load = [Request(0, 0, samples)] * (self.workers * self.prefetch)
            answers = self._answers([*load, *[Weigh()] * self.workers])  # in turns: each process is asked once
            held = sum(answer for answer in answers if isinstance(answer, int))
            self.helpers_bytes = max(self.helpers_bytes, held)
        return super().rehearse(random, seed, weight)

    def close(self) -> None:
        del self._dataloader

    def _answers(self, requests: Iterable[Request | Weigh]) -> Iterator[Answer]:
        self._wanted.requests = requests
        arriving = iter(self._dataloader)
        try:
            yield from arriving
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise LoaderProcessError(_how_it_ended(arriving)) from error


class Wanted:
    """What the DataLoader takes for a sampler: the requests of the epoch that comes next."""

    requests: Iterable[Request | Weigh] = ()

    def __iter__(self) -> Iterator[Request | Weigh]:
        return iter(self.requests)


def _requests(epoch: Epoch, outstanding: deque[float]) -> Iterator[Request]:
    order = epoch.order.numpy()
    for first, end, weight in epoch.parts:
        outstanding.append(weight)
        yield Request(epoch.key, first, order[first:end])


class Stock(Dataset[Answer]):
    """The training set as a loader process sees it: batches by request.

    `one_by_one` takes the samples of a batch one after another and stacks them, as the usual loader of images does.
    It is sent to a process by what it is made of: an augmentation of the user's own may be known by name only.
    """

    def __init__(self, split: Split, augmentation: Variant, *, one_by_one: bool) -> None:
        self.split, self.augmented_by, self.one_by_one = split, augmentation, one_by_one
        self._augment = lru_cache(maxsize=1)(self._of_epoch)

    def __getitem__(self, request: Request | Weigh) -> Answer:
        if isinstance(request, Weigh):
            return held_bytes()
        augment = self._augment(request.key)
        chosen = torch.from_numpy(request.samples)
        take: Callable[[Tensor, Augment, int], Tensor] = self._stacked if self.one_by_one else self._gathered
        return take(chosen, augment, request.first), self.split.targets.index_select(0, chosen)

    def _gathered(self, chosen: Tensor, augment: Augment, first: int) -> Tensor:
        return augment(self.split.inputs.index_select(0, chosen), first, first + len(chosen))

    def _stacked(self, chosen: Tensor, augment: Augment, first: int) -> Tensor:
        images = [
            augment(self.split.inputs[sample : sample + 1], place, place + 1)
            for place, sample in enumerate(chosen.tolist(), first)
        ]
        return torch.cat(images)

    def _of_epoch(self, key: int) -> Augment:
        return augmentations.make(self.augmented_by).of_epoch(key, len(self.split), self.split.inputs.device)

    def __reduce__(self) -> tuple[Callable[..., Stock], tuple[Split, Variant, bool]]:
        return _stock, (self.split, self.augmented_by, self.one_by_one)


def _stock(split: Split, augmentation: Variant, one_by_one: bool) -> Stock:
    return Stock(split, augmentation, one_by_one=one_by_one)


def held_bytes() -> int:
    """This process's share of the host's memory, Linux's proportional set size.

    What several processes map counts in equal parts for each.
    """
    rollup = Path("/proc/self/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match
    return int(match.group(1)) * 1024


def _as_it_is(answer: Any) -> Any:
    return answer


def _end_with_worker(_number: int) -> None:
    """The kernel ends a loader process with the fork server, and that one with the training worker."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # it is gone already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides


def _how_it_ended(arriving: object) -> str:
    """One line on the processes that are gone, by their exit codes."""
    ends = {}
    for number, process in enumerate(getattr(arriving, "_workers", ())):
        code = process.exitcode
        if code is not None:
            ends[number] = f"signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"exit {code}"
    text = ", ".join(f"process {number} by {how}" for number, how in ends.items())
    hint = {"SIGKILL": "too little memory?", "SIGBUS": "too little shared memory in /dev/shm?"}
    why = " ".join(words for name, words in hint.items() if name in text)
    return f"loader=processes: ended before its time: {text}{'; ' if why else ''}{why}"
