"""An augmentation that takes a known time for each sample, or goes wrong: what a loader must hide, or survive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.augmentation import Augment, Augmentation, augmentations


@augmentations.register("slow")
class Slow(Augmentation):
    """Sleeps for each sample; then its fault comes true, but not in the first batch of an epoch."""

    def __init__(self, *, sleep_s: float, fault: str) -> None:
        self.sleep_s = sleep_s
        faults: dict[str, Callable[[], object]] = {
            "none": lambda: None,
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "hang": lambda: time.sleep(3600),
            "raise": lambda: 1 // 0,
        }
        self.fault = faults[fault]

    def of_epoch(self, _key: int, _samples: int, _device: torch.device) -> Augment:
        def augment(images: Tensor, first: int, end: int) -> Tensor:
            time.sleep(self.sleep_s * (end - first))
            if first > 0:  # rehearsals are of the first batch
                self.fault()
            return images

        return augment
