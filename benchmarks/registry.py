"""Registries: a variant's name (its YAML file's, and the value in the record) to the code that makes it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from benchmarks.core.config import Variant
from benchmarks.core.errors import unknown
from benchmarks.core.variants import extra_folder

Made = TypeVar("Made")
Maker = TypeVar("Maker", bound=Callable[..., Any])


class Registry(Generic[Made]):
    """The variants of one axis.

    Modules in `benchmarks/<axis>/`, and in the user's extra folder, register themselves on import.
    """

    def __init__(self, axis: str) -> None:
        self.axis = axis
        self._makers: dict[str, Callable[..., Made]] = {}

    def register(self, name: str) -> Callable[[Maker], Maker]:
        """Decorate the function or class that makes a variant; its keywords are the YAML file's options."""

        def keep(maker: Maker) -> Maker:
            self._makers[name] = maker
            return maker

        return keep

    def __getitem__(self, name: str) -> Callable[..., Made]:
        """The maker of a variant. Raises ConfigError if no module registers that name."""
        self._import_all()
        if name not in self._makers:
            raise unknown(self.axis, name, self._makers)
        return self._makers[name]

    def names(self) -> list[str]:
        """All registered names."""
        self._import_all()
        return sorted(self._makers)

    def make(self, variant: Variant, *arguments: Any, **more: Any) -> Made:
        """Call a variant's maker with its options as keywords."""
        return self[variant.name](*arguments, **variant.options, **more)

    def __reduce__(self) -> tuple[Callable[[str], Registry[Any]], tuple[str]]:
        """A pickled registry is that of the same axis in the process that reads it."""
        return registry_of, (self.axis,)

    def _import_all(self) -> None:
        import_variants(self.axis)
        folder = extra_folder()
        for path in sorted(folder.glob("*.py")) if folder else ():
            _import_file(path)


def import_variants(axis: str) -> None:
    """Have all variants of an axis that are the project's own register themselves."""
    package = importlib.import_module(f"benchmarks.{axis}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def registry_of(axis: str) -> Registry[Any]:
    """The registry of an axis in this process."""
    package = importlib.import_module(f"benchmarks.{axis}")
    return next(value for value in vars(package).values() if isinstance(value, Registry) and value.axis == axis)


def _import_file(path: Path) -> None:
    name = f"scalebench_extra.{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
