"""A number with its interval, as every table, figure and file shows it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A median over repeats and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    is_bound: Annotated[
        bool, Meta(description="The median is larger than `value`, the most that was seen: too few runs got there.")
    ] = False
    open_above: Annotated[
        bool, Meta(description="The interval has no upper end; `high` is the most that was seen.")
    ] = False
    words: Annotated[str, Meta(description="What belongs to the number, as `3 of 5 reached it`.")] = ""
