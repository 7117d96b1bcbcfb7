"""Scaling models: fitted to a series of measured worker counts, and asked for counts that nobody has measured.

Every model gives the time T(n) of a step on n workers. Parameters are not negative.

- Amdahl (AFIPS 1967), strong scaling: T = t1 (s + (1 - s) / n), s the serial fraction.
- Gustafson (CACM 31, 1988), weak scaling: T = t1 n / (s + (1 - s) n), s the serial fraction of the scaled work.
- The universal scalability law (Gunther, "Guerrilla Capacity Planning", 2007, chapter 4): throughput on n workers is
  that of one, times n / (1 + sigma (n - 1) + kappa n (n - 1)): contention and coherence.
- Latency and bandwidth (Hockney 1994) of an all-reduce by recursive halving and doubling (Thakur et al. 2005), which
  has 2 log2(n) messages and 2 (n - 1) / n of the bytes: T = w + 2 alpha log2(n) + 2 beta (n - 1) / n, with w / n for w
  in strong scaling; w is one worker's work, alpha a message's latency, beta the time to send all bytes once. A ring's
  2 (n - 1) messages make the universal law in strong scaling, with sigma = 2 beta / w and kappa = 2 alpha / w.

Fits are least squares of log T over all repeats: noise of a time is a share of it, and repeats weigh alike. The model
is chosen by the corrected Akaike criterion (Hurvich and Tsai 1989). A law's spread is by the delta method with
Student's t (Seber and Wild, "Nonlinear Regression", 1989, section 5.1). Beyond what was measured, the doubt which law
it is weighs more than noise, so intervals mix the laws by weight; what they cannot hold is a law that is none of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.schema import Fit, HeldOut, Kind, Prediction
from analysis.statistics.estimate import Estimate

Floats = NDArray[np.float64]

ENOUGH_COUNTS = 4
"""Different numbers of workers, below which nothing is fitted."""
ENOUGH_EXPLAINED = 0.9
"""Of the variance of log T, or the fit is refused; where the times hardly differ, see `_explains`."""
_FLAT = 0.05
"""A largest deviation of a fit from the medians that is good enough where there is little variance to explain."""
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Model:
    """A law with its parameters; `time` takes them and worker counts, both as arrays."""

    name: str
    parameters: tuple[str, ...]
    time: Callable[[Floats, Floats], Floats]
    start: Callable[[float], Floats]
    """Where the search begins, from the time of the smallest count scaled to one worker."""
    upper: tuple[float, ...]


def _amdahl(p: Floats, n: Floats) -> Floats:
    return np.asarray(p[0] * (p[1] + (1 - p[1]) / n))


def _gustafson(p: Floats, n: Floats) -> Floats:
    return np.asarray(p[0] * n / (p[1] + (1 - p[1]) * n))


def _slowed(p: Floats, n: Floats) -> Floats:
    return np.asarray(p[0] * (1 + p[1] * (n - 1) + p[2] * n * (n - 1)))


def _messages(p: Floats, n: Floats) -> Floats:
    return np.asarray(2 * p[1] * np.log2(n) + 2 * p[2] * (n - 1) / n)


_INFINITE = math.inf
_NO_LOSS, _SOME_LOSS = 0.02, 0.01
_Time = Callable[[Floats, Floats], Floats]


def _serial(name: str, time: _Time) -> Model:
    return Model(
        name=name,
        parameters=("t1_s", "serial_fraction"),
        time=time,
        start=lambda t1: np.array([t1, _NO_LOSS]),
        upper=(_INFINITE, 1.0),
    )


def _universal(time: _Time) -> Model:
    return Model(
        name="universal scalability law",
        parameters=("t1_s", "sigma", "kappa"),
        time=time,
        start=lambda t1: np.array([t1, _NO_LOSS, _SOME_LOSS / 10]),
        upper=(_INFINITE, 1.0, _INFINITE),
    )


def _communicating(time: _Time, latency: float) -> Model:
    """`latency`: where the search for alpha begins, as a share of one worker's time."""
    return Model(
        name="latency and bandwidth",
        parameters=("work_s", "alpha_s", "beta_s"),
        time=time,
        start=lambda t1: np.array([t1, t1 * latency, t1 * _SOME_LOSS]),
        upper=(_INFINITE, _INFINITE, _INFINITE),
    )


MODELS: Mapping[Kind, tuple[Model, ...]] = {
    "strong": (
        _serial("Amdahl", _amdahl),
        _universal(lambda p, n: _slowed(p, n) / n),
        _communicating(lambda p, n: p[0] / n + _messages(p, n), _SOME_LOSS / 10),
    ),
    "weak": (
        _serial("Gustafson", _gustafson),
        _universal(_slowed),
        _communicating(lambda p, n: p[0] + _messages(p, n), _SOME_LOSS),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model with the parameters that fit best."""

    model: Model
    parameters: Floats
    covariance: Floats
    """Of the parameters."""
    freedom: int
    aicc: float
    explained: float
    worst: float
    """The largest distance of a worker count's median from the curve, as a share."""

    def log_time(self, workers: int) -> tuple[float, float]:
        """The logarithm of the time of a step on so many workers, and its standard error."""
        n = np.array([float(workers)])
        gradient = _gradient(self.model, self.parameters, n)[0]
        variance = max(0.0, float(gradient @ self.covariance @ gradient))
        return math.log(float(self.model.time(self.parameters, n)[0])), math.sqrt(variance)


@dataclass(frozen=True)
class Candidates:
    """All laws that could be fitted, the best by the corrected Akaike criterion first."""

    laws: Sequence[Fitted]

    @property
    def best(self) -> Fitted:
        """The chosen one."""
        return self.laws[0]

    def weights(self) -> Floats:
        """Akaike weights: how likely each law is the best of them (Burnham and Anderson 2002, section 2.9)."""
        behind = np.array([law.aicc - self.best.aicc for law in self.laws])
        likelihoods = np.exp(-behind / 2)
        return np.asarray(likelihoods / likelihoods.sum())

    def time(self, workers: int) -> Estimate:
        """The time of a step on so many workers: the best law's, with an interval that holds the doubt which law it is.

        It spans the middle 95 % of the laws' t-distributions, mixed by their weights.
        """
        from scipy.optimize import brentq
        from scipy.special import stdtr

        at = [law.log_time(workers) for law in self.laws]
        weights = self.weights()
        widest = max(spread for _, spread in at)
        if widest == 0:
            values = [math.exp(middle) for middle, _ in at]
            return Estimate(value=values[0], low=min(values), high=max(values))

        def below(x: float) -> float:
            parts = [
                weight * stdtr(law.freedom, (x - middle) / max(spread, 1e-12))
                for law, weight, (middle, spread) in zip(self.laws, weights, at, strict=True)
            ]
            return float(sum(parts))

        lowest = min(middle for middle, _ in at) - 50 * widest
        highest = max(middle for middle, _ in at) + 50 * widest
        tail = (1 - _LEVEL) / 2
        low, high = (brentq(lambda x, q=q: below(x) - q, lowest, highest) for q in (tail, 1 - tail))
        value = at[0][0]
        return Estimate(value=math.exp(value), low=math.exp(min(low, value)), high=math.exp(max(high, value)))


def fit(kind: Kind, times_s: Mapping[int, Sequence[float]]) -> Fit:
    """The law that describes a series best, or why none does.

    Args:
        kind: strong (the same work shared out) or weak (the same work for each worker).
        times_s: seconds per step of each repeat, by number of workers.
    """
    times_s = {workers: times for workers, times in times_s.items() if times}
    counts = sorted(times_s)
    if len(counts) < ENOUGH_COUNTS:
        return Fit(refused=f"{len(counts)} worker counts; a law needs {ENOUGH_COUNTS}")
    laws = candidates(kind, times_s)
    if laws is None:
        return Fit(refused="no law could be fitted: too few repeats")
    best = laws.best
    if not _explains(best):
        return Fit(
            refused=f"the best law, {best.model.name}, explains {best.explained:.0%} of the variance and misses by "
            f"up to {best.worst:.0%}"
        )
    asked = [counts[-1] * 2, counts[-1] * 4]
    between = [
        n for n in (2**i for i in range(counts[-1].bit_length())) if counts[0] < n < counts[-1] and n not in counts
    ]
    return Fit(
        model=best.model.name,
        parameters=dict(zip(best.model.parameters, map(float, best.parameters), strict=True)),
        explained=best.explained,
        aicc=best.aicc,
        curve=[_prediction(laws, n, measured=n in counts) for n in sorted({*counts, *between, *asked})],
        held_out=_held_out(kind, times_s),
    )


def _prediction(candidates: Candidates, workers: int, *, measured: bool) -> Prediction:
    return Prediction(workers=workers, step_time_s=candidates.time(workers), measured=measured)


def _explains(fitted: Fitted) -> bool:
    """Whether a fit is worth showing; in good weak scaling there is little variance to explain, and its miss counts."""
    return fitted.explained >= ENOUGH_EXPLAINED or fitted.worst <= _FLAT


def candidates(kind: Kind, times_s: Mapping[int, Sequence[float]]) -> Candidates | None:
    """All laws of a kind, the best first; None where there are too few repeats for any. Arguments as in `fit`."""
    found = [fitted for model in MODELS[kind] if (fitted := fit_model(model, times_s))]
    return Candidates(sorted(found, key=lambda fitted: fitted.aicc)) if found else None


def _held_out(kind: Kind, times_s: Mapping[int, Sequence[float]]) -> HeldOut | None:
    """How far a law of the smaller counts misses the largest one; null where too few are left."""
    largest = max(times_s)
    rest = {n: times for n, times in times_s.items() if n != largest}
    if len(rest) < ENOUGH_COUNTS - 1 or (laws := candidates(kind, rest)) is None:
        return None
    predicted, measured = laws.time(largest), float(np.median(times_s[largest]))
    return HeldOut(
        workers=largest,
        model=laws.best.model.name,
        predicted_s=predicted,
        measured_s=measured,
        miss=predicted.value / measured - 1,
    )


def fit_model(model: Model, times_s: Mapping[int, Sequence[float]]) -> Fitted | None:
    """One law's best parameters; None where there are too few points for them, or the search fails."""
    from scipy.optimize import least_squares

    n = np.array([count for count, times in times_s.items() for _ in times], dtype=np.float64)
    log_t = np.log(np.array([time for times in times_s.values() for time in times], dtype=np.float64))
    size = len(model.parameters)
    if len(times_s) < size or n.size < size + 3:  # the criterion's correction divides by n - parameters - 2
        return None
    smallest = n == n.min()
    base = float(np.exp(np.median(log_t[smallest])))
    start = model.start(base)
    start *= np.where(_is_time(model), base / float(model.time(start, n[smallest])[0]), 1.0)
    scale = np.where(start > 0, start, 1.0)
    found = least_squares(
        lambda p: np.log(model.time(p, n)) - log_t,
        start,
        bounds=([1e-12 * scale[0]] + [0.0] * (size - 1), model.upper),
        x_scale=scale,
        max_nfev=2000,
    )
    if not found.success or not np.all(np.isfinite(found.x)):
        return None
    return _described(model, found.x, n, log_t)


def _is_time(model: Model) -> Floats:
    return np.array([float(name.endswith("_s")) for name in model.parameters])


def _described(model: Model, parameters: Floats, n: Floats, log_t: Floats) -> Fitted:
    misses = log_t - np.log(model.time(parameters, n))
    rss = max(float(misses @ misses), 1e-24)
    size = len(parameters)
    freedom = n.size - size
    k = size + 1  # the noise is a parameter, too
    jacobian = _gradient(model, parameters, n)
    # A parameter at its bound of zero is as uncertain as any: without it, forecasts would be far too sure.
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * rss / freedom
    total = float(np.sum((log_t - log_t.mean()) ** 2))
    medians = [np.median(misses[n == count]) for count in np.unique(n)]
    return Fitted(
        model=model,
        parameters=parameters,
        covariance=covariance,
        freedom=freedom,
        aicc=n.size * math.log(rss / n.size) + 2 * k + 2 * k * (k + 1) / (n.size - k - 1),
        explained=1 - rss / total if total > 0 else 1.0,
        worst=float(max(abs(np.expm1(medians)))),
    )


def _gradient(model: Model, parameters: Floats, n: Floats) -> Floats:
    """d log T / d parameter, by central differences; shape (points, parameters)."""
    columns = []
    for index, value in enumerate(parameters):
        step = 1e-6 * max(abs(float(value)), 1e-6 * max(1e-12, abs(float(parameters[0]))))
        above, below = parameters.copy(), parameters.copy()
        above[index] += step
        below[index] = max(0.0, below[index] - step)
        width = above[index] - below[index]
        columns.append((np.log(model.time(above, n)) - np.log(model.time(below, n))) / width)
    return np.stack(columns, axis=1)
