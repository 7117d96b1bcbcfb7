"""What CPU packages have used, by the counters of RAPL that the kernel shows (Intel's and AMD's alike).

Only domains called `package-...` count: their cores, graphics and, on servers, memory are domains of their own within
or beside them, and `psys` holds the packages once more. The interface is the kernel's "Power Capping Framework"
(Documentation/power/powercap).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.meters.counter import Counter, CounterError, Sample

FOLDER_VARIABLE = "SCALEBENCH_POWERCAP"
"""Where the counters are, if not at their usual place: container runtimes hide that one, but may bind it elsewhere."""
USUAL_FOLDER = "/sys/class/powercap"


class PackageCounter(Counter):
    """One package's counter, in microjoules; it begins again at 0 after its range, within minutes under full load.

    It must be read at least once in that time: sampling it every second does so.
    """

    source = "rapl"
    period_s = 1.0

    def __init__(self, folder: Path) -> None:
        self.name = _text(folder / "name")
        self._file = folder / "energy_uj"
        self._range_uj = _number(folder / "max_energy_range_uj")
        self._raw_uj = _number(self._file)
        self._total_uj = 0
        self._read_s = time.monotonic()

    def joules(self) -> float:
        raw_uj = _number(self._file)
        used_uj = raw_uj - self._raw_uj
        self._total_uj += used_uj if used_uj >= 0 else used_uj + self._range_uj
        self._raw_uj, self._read_s = raw_uj, time.monotonic()
        return self._total_uj / 1e6

    def sample(self) -> Sample:
        """The mean power since the last reading."""
        before_j, before_s = self._total_uj / 1e6, self._read_s
        used_j = self.joules() - before_j
        passed_s = self._read_s - before_s
        return Sample(used_j / passed_s if passed_s > 0 else None)


def package_counters() -> list[PackageCounter]:
    """Those of all of this host's packages. Raises CounterError unless there is one, and every one can be read."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, USUAL_FOLDER))
    if not folder.is_dir():
        raise CounterError(f"no energy counter: {folder} is not there")
    # A domain within another one has a second colon in its name.
    domains = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
    packages = [path for path in domains if _text(path / "name").startswith("package-")]
    if not packages:
        raise CounterError(f"no energy counter: {folder} has no package")
    return [PackageCounter(path) for path in packages]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise CounterError(f"{path}: not readable ({why})") from error


def _number(path: Path) -> int:
    text = _text(path)
    try:
        return int(text)
    except ValueError as error:
        raise CounterError(f"{path}: no number ({text[:20]!r})") from error
