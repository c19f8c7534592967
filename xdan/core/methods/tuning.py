"""Tuning: it searches the parameters of a method that are "tune", on the leading part of a record."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import warn
from ..log import TUNING
from ..progress import counted, part_bar
from .base import Method
from .declarations import Search
from .loop import run
from .record import Record


def tune(method: Method, record: Record) -> Method:
    """Prepare a method for a record, and choose the best value for each parameter that is "tune".

    With several parameters, all combinations of their values are tried. A value that loses a trajectory is not chosen.

    Parameters
    ----------
    method : Method
    record : Record

    Returns
    -------
    Method
        The prepared method. Its `chosen()` holds the chosen values and the scores of all values.

    Raises
    ------
    ValueError
        If the method cannot work on the record, `tune_on` is "truth" and the record has no truth, or every value loses
        a trajectory.

    Warns
    -----
    XdanWarning
        If the chosen value of a parameter is the first or the last of its candidates.
    """
    names = method.to_tune()
    if names and method.tune_on == "truth" and record.truth is None:
        raise ValueError("tune_on='truth': the record has no truth, expected one; use tune_on='innovation'")
    ready = method.prepare(record)
    if not names:
        return ready
    best, place = search_grid(ready, record)
    for name, value in zip(names, place, strict=True):
        warn_at_an_end(method, name, value)
    return best


def search_grid(method: Method, record: Record) -> tuple[Method, tuple[float, ...]]:
    """Search the parameters of a prepared method that are "tune". There must be at least one.

    Returns
    -------
    Method
        The method with the chosen numbers.
    tuple of float
        The best values, before a refinement between the candidates.

    Raises
    ------
    ValueError
        If no value has a finite score.
    """
    names, part = method.to_tune(), leading(record, method.search)
    grid = list(itertools.product(*(method.tried(name) for name in names)))
    curve = (_scores_together if method.search.together else _scores_in_turn)(method, part, grid)
    if not bool(torch.isfinite(curve).any()):
        raise ValueError(
            f"no value tried for {names} of {method.name!r} gave a finite score on the leading part of the "
            "record, expected one at least: every one diverged, or nothing is observed there; give candidates= "
            "or numbers instead of 'tune'"
        )
    best = int(torch.nan_to_num(curve, nan=math.inf).argmin())
    numbers = dict(zip(names, grid[best], strict=True))
    if method.search.refined and not method.asked_candidates():
        (name,) = names
        values = torch.tensor(method.tried(name), dtype=torch.float64).to(record.observation.dtype)
        numbers[name] = float(vertex(values, curve, best))
    TUNING.info("%s: chose %s", method.name, _in_words(numbers))
    chosen = method.at(numbers)
    chosen._curve = curve.reshape([len(method.tried(name)) for name in names])
    return chosen, grid[best]


def leading(record: Record, part: Search) -> Record:
    """Cut the leading part of a record, which tuning uses."""
    rows, columns = slice(0, part.trajectories), slice(0, part.cycles)
    return replace(
        record,
        observing=record.observing.during(columns),
        observation=record.observation[rows, columns],
        steps=record.steps[columns],
        trajectory=record.trajectory[rows],
        truth=None if record.truth is None else record.truth[rows, columns],
        clock=record.clocks[rows],
    )


def burn_in(record: Record, part: Search) -> int:
    """Number of first cycles that no score uses."""
    return min(part.burn_in, record.observation.shape[1] // 3)


def _in_words(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in numbers.items())


def _what(method: Method) -> str:
    return f"tuning {' and '.join(method.to_tune())} of {method.name}"


def _scores_in_turn(method: Method, record: Record, grid: list[tuple[float, ...]]) -> Tensor:
    """Scores of all candidates from one run after another; shape (C,)."""
    scores, names, cycles = [], method.to_tune(), len(record.steps)
    with part_bar(len(grid) * cycles, _what(method)) as bar:
        for values in grid:
            numbers = dict(zip(names, values, strict=True))
            one = method.at(numbers)
            scores.append(_scores(one, record, run(one, record, tick=counted(bar))[0], 1))
            text = _log_score(method, len(scores), len(grid), numbers, float(scores[-1]))
            bar.set_postfix_str(text, refresh=False)
    return torch.cat(scores)


def _log_score(method: Method, number: int, candidates: int, numbers: Mapping[str, float], score: float) -> str:
    """Log the score of a candidate, and return it as a short text."""
    text = f"{_in_words(numbers)}: {method.curve.name} {score:.4g}"
    TUNING.info("%s, candidate %d of %d: %s", method.name, number, candidates, text)
    return text


def _scores_together(method: Method, record: Record, grid: list[tuple[float, ...]]) -> Tensor:
    """Scores of all candidates from one run, in which every candidate has a copy of the trajectories; shape (C,)."""
    copies, lanes = len(grid), len(record.observation)
    columns = torch.tensor(grid, dtype=torch.float64).to(record.observation).T
    numbers = {name: c.repeat_interleave(lanes) for name, c in zip(method.to_tune(), columns, strict=True)}
    repeated = replace(
        record,
        observation=record.observation.repeat(copies, 1, 1),
        trajectory=record.trajectory.repeat(copies),
        truth=None,
        clock=record.clocks.repeat(copies),
    )
    with part_bar(len(record.steps), f"{_what(method)}, {copies} candidates together") as bar:
        outputs, _ = run(method.at(numbers), repeated, tick=counted(bar))
    scores = _scores(method, record, outputs, copies)
    for number, (values, score) in enumerate(zip(grid, scores.tolist(), strict=True), 1):
        _log_score(method, number, copies, dict(zip(method.to_tune(), values, strict=True)), score)
    return scores


def _scores(method: Method, record: Record, outputs: dict[str, Tensor], copies: int) -> Tensor:
    """Scores of runs over copies of a record. Smaller is better; infinite if a trajectory is lost.

    With the truth, the score is the mean analysis RMSE. With innovations, it is their root mean square or their
    negative log-likelihood. The latter is half the mean of log v + d^2 / v, where v is the forecast variance plus R's
    diagonal. Without a forecast spread, or with an operator, the mean square of the innovations takes its place.

    Parameters
    ----------
    method : Method
    record : Record
    outputs : dict of Tensor, shape (C B, K, ...)
    copies : int
        Number of copies C.

    Returns
    -------
    Tensor, shape (C,)
    """
    first, shape = burn_in(record, method.search), (copies, len(record.observation))
    criterion, observing = method.curve.name, record.observing
    if criterion == "truth_rmse":
        error = (outputs["analysis"].unflatten(0, shape) - record.truth)[:, :, first:]
        scores = error.square().mean(-1).sqrt().flatten(1).mean(1)
    else:
        observed = observing.observe(outputs["forecast"]).unflatten(0, shape)
        innovation = (record.observation - observed)[:, :, first:]
        if criterion == "innovation_rms":
            scores = innovation.flatten(1).square().nanmean(1).sqrt()
        elif not method.gives_forecast_spread or not observing.direct:
            scores = innovation.flatten(1).square().nanmean(1)
        else:
            spread = outputs["forecast_spread"].unflatten(0, shape)[:, :, first:]
            variance = spread**2 + observing.during(slice(first, None)).error_variance()
            scores = (0.5 * (variance.log() + innovation.square() / variance)).flatten(1).nanmean(1)
    diverged = outputs["diverged"].reshape(copies, -1).any(1)
    return torch.where(diverged, torch.inf, scores).cpu()


def vertex(values: Tensor, curve: Tensor, best: int) -> Tensor:
    """Minimum of the parabola through the best candidate and its two neighbours, in the logarithm of the value."""
    if not 0 < best < len(values) - 1 or not bool(curve[best - 1 : best + 2].isfinite().all()):
        return values[best]
    left, middle, right = curve[best - 1 : best + 2]
    bend = left - 2 * middle + right
    shift = torch.where(bend > 0, 0.5 * (left - right) / bend, torch.zeros_like(bend)).clamp(-0.5, 0.5)
    return values[best] * (values[best + 1] / values[best]) ** shift


def warn_at_an_end(method: Method, name: str, value: float) -> None:
    """Warn if the chosen value of a parameter is the first or the last candidate."""
    values = method.tried(name)
    if min(values) < value < max(values) or (value == method.tunable[name].natural_end and value == min(values)):
        return
    side = "smaller" if value == min(values) else "larger"
    warn(
        f"tuning {name} of {method.name!r} chose {value:g}, an end of its candidates ({min(values):g} to "
        f"{max(values):g}): a {side} value may be better; give others with candidates={{{name!r}: [...]}}, or a "
        "number",
    )
