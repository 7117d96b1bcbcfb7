"""The space that a tuning sweep searches: its dimensions, read from the sweep's file and checked. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from benchmarks.core.errors import ConfigError, unknown
from benchmarks.core.variants import VARIANT_AXES, Option, Scalar

_RANGE_KEYS = ("low", "high", "log", "step")
_DIGITS = 4
_DIGITS_OF_STEPS = 12
_ROUNDING = 1e-9
"""Of a range's length in steps: 0.3 / 0.1 is three steps, though it is less than 3 in binary."""


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """One searched key: `choices`, or the numbers from `low` to `high`, both included."""

    key: str
    choices: list[Scalar] = []
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    """Whole numbers only."""

    def at(self, share: float) -> Scalar:
        """A value of the dimension: its first at 0, its last at 1, one between them otherwise."""
        if self.choices:
            return self.choices[round(share * (len(self.choices) - 1))]
        if self.step:
            return self._plain(self.low + self.step * round(share * (self.high - self.low) / self.step))
        return self._plain(self.low * (self.high / self.low) ** share if self.log else self._between(share))

    def share(self, value: Option) -> float:
        """Where a number lies in the range, from 0 to 1; on its logarithmic scale where it has one."""
        assert isinstance(value, (int, float))
        assert not self.choices
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def rounded(self, value: Scalar) -> Scalar:
        """A drawn value as people write it: four digits are more than a search can tell apart."""
        if self.choices or self.whole or not isinstance(value, float):
            return value
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS_OF_STEPS if self.step else _DIGITS}g}")))

    def _between(self, share: float) -> float:
        return self.low + share * (self.high - self.low)

    def _plain(self, value: float) -> int | float:
        return round(value) if self.whole else value


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A range given on the command line, as `optimizer.lr=interval(0.001,0.1)` or `tag(log,interval(0.001,0.1))`."""

    low: float
    high: float
    log: bool = False


def read_dimension(key: str, given: Any, default: Option) -> Dimension:
    """A key of `sweep.tune.space`; `default` is a value of the key's type, None where it may have any.

    Raises:
        ConfigError: one line, which names key and value.
    """
    where = f"sweep.tune.space.{key}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}={given}: must be {{choices: [...]}} or {{low: ..., high: ...}}")
    for each in given.keys() - {"choices", *_RANGE_KEYS}:
        raise unknown(f"key of {where}", each, ["choices", *_RANGE_KEYS])
    if "choices" in given:
        return _choices(key, given, where)
    if key in VARIANT_AXES or isinstance(default, (str, bool, list)):
        raise ConfigError(f"{where}: has no numbers to take from a range; give it choices: [...]")
    numbers = {each: given.get(each) for each in ("low", "high", "step") if each != "step" or given.get("step")}
    for each, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise ConfigError(f"{where}.{each}={value}: must be a number")
    whole = type(default) is int or (default is None and all(type(value) is int for value in numbers.values()))
    for each, value in numbers.items():
        if whole and value != int(value):  # type: ignore[arg-type]
            raise ConfigError(f"{where}.{each}={value}: must be a whole number")
    log = given.get("log", False)
    low, high = _number(given["low"], whole), _number(given["high"], whole)
    step = _number(given["step"], whole) if "step" in numbers else None
    found = Dimension(key=key, low=low, high=high, log=log, step=step, whole=whole)
    _check_range(found, where)
    if not found.step:
        return found
    steps = math.floor((found.high - found.low) / found.step + _ROUNDING)
    return msgspec.structs.replace(found, high=_number(f"{found.low + steps * found.step:.{_DIGITS_OF_STEPS}g}", whole))


def _number(value: Any, whole: bool) -> int | float:
    return int(value) if whole else float(value)


def _choices(key: str, given: Mapping[str, Any], where: str) -> Dimension:
    values = given["choices"]
    if others := given.keys() - {"choices"}:
        raise ConfigError(f"{where}: has choices, and {', '.join(sorted(others))} of a range; give one of them")
    if not isinstance(values, list) or len({repr(value) for value in values}) < max(2, len(values)):
        raise ConfigError(f"{where}.choices={values}: must be a list of at least two different values")
    if not all(value is None or isinstance(value, (str, int, float, bool)) for value in values):
        raise ConfigError(f"{where}.choices={values}: must be numbers, texts, true, false or null")
    return Dimension(key=key, choices=values)


def _check_range(found: Dimension, where: str) -> None:
    shown = f"{where}: low={found.low:g}, high={found.high:g}"
    if not isinstance(found.log, bool):
        raise ConfigError(f"{where}.log={found.log}: must be true or false")
    if found.low >= found.high:
        raise ConfigError(f"{shown}: low must be below high")
    if found.log and found.low <= 0:
        raise ConfigError(f"{shown}, log=true: a logarithmic range begins above 0")
    if found.log and found.step:
        raise ConfigError(f"{shown}, log=true, step={found.step:g}: a range is logarithmic or has steps, not both")
    if found.step and not 0 < found.step <= found.high - found.low:
        raise ConfigError(f"{shown}, step={found.step:g}: must be above 0, and at most high - low")
