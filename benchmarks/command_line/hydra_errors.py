"""Hydra's errors, which span many lines, as one: key, value, what is allowed."""

from __future__ import annotations

import re

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from benchmarks.core.config import known_keys
from benchmarks.core.errors import unknown

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def one_line(error: BaseException) -> str:
    """What was wrong on the command line or in a YAML file."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        axis, _, value = error.missing_cfg_file.rpartition("/")
        return str(unknown(axis, value, error.options))
    text = " ".join(str(error).split())
    if match := re.match(r"Could not override '(.+?)'", text):
        return str(unknown("configuration key", match[1], known_keys(match[1])))
    if error.__cause__ is not None and not text:
        return " ".join(str(error.__cause__).split())
    return text
