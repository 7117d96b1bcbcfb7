"""What a user did wrong, said in one line: key, value, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the person at the keyboard can mend. Its text is one line; the exit code is 2."""

    exit_code = 2


class ConfigError(UserError):
    """A key that does not exist, or a value that can never be right."""


class ImpossibleRunError(ConfigError):
    """Each value is fine, their combination is not. A sweep drops such a cell and shows the reason."""


def unknown(key: str, value: object, allowed: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `allowed`, with the nearest name where one is near."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return ConfigError(f"{key}={value}: not known{hint}; allowed: {', '.join(names) or 'nothing'}")


def told(error: UserError | OSError) -> tuple[str, int]:
    """An error as one line, and the exit code of the command that it ends."""
    if isinstance(error, UserError):
        return " ".join(str(error).split()), error.exit_code
    return f"{error.filename or 'results'}: {error.strerror or error}", 1
