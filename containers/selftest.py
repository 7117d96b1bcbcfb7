"""Does the image work? Run at the end of its build, inside it, with nothing of the project but this file.

Everything that a run or its analysis imports is imported, and a model takes one step of training.
"""

from __future__ import annotations

import importlib
import sys

STANDARD = ("bz2", "ctypes", "lzma", "multiprocessing", "sqlite3", "ssl", "venv", "zlib")
LOCKED = (
    *("hydra", "omegaconf", "submitit", "cloudpickle", "msgspec", "rich", "tabulate"),
    *("numpy", "pandas", "scipy", "sklearn", "matplotlib.pyplot", "seaborn", "torch", "torchvision"),
)


def main(packages: str) -> None:
    """Raise where something is missing or wrong; `packages` is `lock`, or `none` for an image with Python alone."""
    for module in STANDARD + (LOCKED if packages == "lock" else ()):
        importlib.import_module(module)
    if packages == "lock":
        training_step()


def training_step() -> None:
    """One step of gradient descent on a convex loss: it must fall."""
    torch = importlib.import_module("torch")
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, targets = torch.randn(8, 4), torch.randn(8, 1)
    before = torch.nn.functional.mse_loss(model(inputs), targets)
    before.backward()
    optimizer.step()
    if not torch.nn.functional.mse_loss(model(inputs), targets) < before:
        raise RuntimeError("a step of training has not made the loss smaller")


if __name__ == "__main__":
    main(*sys.argv[1:])
