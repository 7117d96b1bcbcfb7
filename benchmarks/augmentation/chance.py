"""Random numbers by key and place, the same on every device: torch's own generators differ between devices.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA, figure 16): the numbers
of a stream are a counter, spread by an odd constant and mixed. So any place of a stream is known without those before.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SPREAD = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_FIELD_BITS = 20  # of a word, for one number: three fit
_FIELDS = 3


def words(key: int, count: int, device: torch.device) -> Tensor:
    """The first random words (count) of a key's stream, int64 with all 64 bits random.

    Streams begin where a stream of streams says, so that near keys share no stretch. Nothing waits for the device.
    """
    begin = _mixed(torch.full((), _signed((key + 1) * _SPREAD), device=device))
    places = torch.arange(1, count + 1, device=device)
    return _mixed(places * _signed(_SPREAD) + begin)


def below(word: Tensor, field: int, bound: int) -> Tensor:
    """Whole numbers (count) from 0 to before `bound`, int64, from the words' field 0, 1 or 2.

    Fields are independent of each other. A number's probability is off by less than 1 / 2^20.
    """
    assert 0 <= field < _FIELDS
    bits = (word >> (field * _FIELD_BITS)) & (2**_FIELD_BITS - 1)
    number: Tensor = (bits * bound) >> _FIELD_BITS
    return number


def _mixed(state: Tensor) -> Tensor:
    for shift, factor in _MIX:
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    return state ^ _shifted(state, _LAST_SHIFT)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """To the right, zeros moving in: torch's own shift repeats the sign."""
    shifted: Tensor = (state >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(number: int) -> int:
    """The lower 64 bits as int64 has them; its products wrap around as those of uint64 do."""
    return (number + 2**63) % 2**64 - 2**63
