"""Passes over a record that estimate Q and R. Blocks of trajectories are tasks of dask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from dask.delayed import Delayed
from torch import Tensor

from ..assimilation.schemes import Scheme
from ..core.estimation.desroziers import desroziers
from ..core.estimation.expectation_maximisation import scores
from ..core.estimation.gaussian_filter import Gaussian, check_linearised
from ..core.estimation.lag_innovations import adapted
from ..core.estimation.structures import Structure, as_matrix
from ..core.methods.climate import climate_moments
from ..core.observing import ObservingSystem
from ..records.blocks import Plan, Setup, block, block_graph, in_block, make_record
from ..records.record import LabelledRecord
from ..records.schema import Array
from ..records.values import LEADING_CYCLES, LEADING_TRAJECTORIES

Estimate = tuple[Array, Array]
"""Q and R, each as variances, shape (n,), or as a covariance, shape (n, n)."""
_TOGETHER = 32  # most trajectories of a task


@dataclass(frozen=True)
class Passes:
    """Passes over a record, with any Q and R.

    Attributes
    ----------
    setup : Setup
        Set-up of the record, with the floating type of the computation.
    observation : dask array, dims (trajectory, time, ...)
        Observations. They are in the memory of this process or of dask's workers, as every pass reads them.
    plan : Plan
        Blocks of trajectories, each with all times.
    structures : tuple of Structure
        Structures of Q and R.
    burn_in, groups, seed : int
    device : str
    """

    setup: Setup
    observation: da.Array
    plan: Plan
    structures: tuple[Structure, Structure]
    burn_in: int
    groups: int
    seed: int
    device: str

    @classmethod
    def over(
        cls,
        labelled: LabelledRecord,
        structures: tuple[Structure, Structure],
        *,
        dtype: np.dtype[Any],
        burn_in: int,
        groups: int,
        seed: int,
        device: str,
    ) -> Passes:
        """Read the observations, and cut their trajectories into blocks."""
        setup = replace(labelled.setup, dtype=dtype)
        array = labelled.observation.chunk().data
        sizes = [min(_TOGETHER, size - start) for size in array.chunks[0] for start in range(0, size, _TOGETHER)]
        (array,) = dask.persist(array.rechunk((tuple(sizes), *(-1 for _ in array.shape[1:]))))
        plan = Plan.from_chunks(sizes, (array.shape[1],))
        return cls(setup, array, plan, structures, burn_in, groups, seed, device)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the decorator of blocks."""
        return {"dtype": self.setup.dtype, "device": self.device}

    def prior(self) -> tuple[Delayed, Array]:
        """Mean and covariance of the climatology, for every task, and the diagonal of the covariance.

        Raises
        ------
        ValueError
            If a derivative of the model or of the observation operator is wrong.
        """
        moments = dask.delayed(_climate, pure=False)(dask.delayed(self.setup, traverse=False), self.seed, self.device)
        (kept,) = dask.persist(moments)
        return kept, np.diagonal(dask.compute(kept)[0][1])

    def scores(self, estimate: Estimate, prior: Delayed) -> dict[str, Array]:
        """Sums from the smoother for Q and R: the entries of `Scores`, (trajectory, group, ...)."""
        sizes = [len(value) for value in estimate]
        tails = [(n, n) if s.whole else (n,) for n, s in zip(sizes, self.structures, strict=True)]
        outputs: dict[str, tuple[int, ...]] = {"model": tails[0], "observation": tails[1], "observed": (sizes[1],)}
        outputs |= dict.fromkeys(("intervals", "times", "log_likelihood"), ())
        whole = tuple(structure.whole for structure in self.structures)
        return self._summed(_scores_block, outputs, prior, estimate, self.burn_in, self.groups, whole)

    def statistics(self, scheme: Scheme, r: Array) -> dict[str, Array]:
        """Products of residuals and innovations of a scheme with R: the entries of `Statistics`, and `diverged`."""
        size, whole = len(r), self.structures[1].whole
        square = (size, size) if whole else (size,)
        outputs: dict[str, tuple[int, ...]] = {"observation": square, "observed": square}
        outputs |= dict.fromkeys(("forecast", "innovation"), (size,))
        observing = with_errors(self.setup.observing, r, dtype=np.dtype(np.float64))
        setup = dask.delayed(replace(self.setup, observing=observing), traverse=False)
        leading = self.observation[:LEADING_TRAJECTORIES, :LEADING_CYCLES]
        ready = dask.delayed(_prepared, pure=False)(scheme, setup, leading, self.seed, self.device)
        settings = (self.seed, self.burn_in, self.groups, whole)
        return self._summed(_statistics_block, outputs, ready, *settings, setup=setup)

    def _summed(
        self, function: Any, outputs: dict[str, tuple[int, ...]], *arguments: Any, setup: Delayed | None = None
    ) -> dict[str, Array]:
        """Compute the sums of every trajectory in groups of times."""
        arrays = block_graph(
            function,
            self.plan,
            [self.observation],
            {name: (tail, np.dtype(np.float64)) for name, tail in outputs.items()},
            dask.delayed(self.setup, traverse=False) if setup is None else setup,
            *arguments,
            sizes=lambda rows, columns: (rows.stop - rows.start, self.groups),
            **self.options,
        )
        answer: dict[str, Array] = dask.compute(arrays)[0]
        return answer

    def adapted(self, start: Estimate, prior: Delayed, smoothing: float) -> dict[str, Array]:
        """Estimates in time from innovations: sums over the trajectories of a block, (block, time, ...)."""
        tails = [value.shape for value in start]
        outputs = {"model": tails[0], "model_square": tails[0], "observation": tails[1], "observation_square": tails[1]}
        outputs |= dict.fromkeys(("alive", "innovation", "seen"), ())
        arrays = block_graph(
            _adapted_block,
            self.plan,
            [self.observation],
            {name: (tail, np.dtype(np.float64)) for name, tail in outputs.items()},
            dask.delayed(self.setup, traverse=False),
            *(prior, start, self.structures, smoothing, self.burn_in),
            sizes=lambda rows, columns: (1, columns.stop - columns.start),
            **self.options,
        )
        answer: dict[str, Array] = dask.compute(arrays)[0]
        return answer


def _observing_with(r: Tensor, observing: ObservingSystem) -> ObservingSystem:
    """The same H with another R: variances, or a covariance."""
    if r.ndim == 1:
        return ObservingSystem(std=r.sqrt(), operator=observing.operator, positions=observing.positions)
    return ObservingSystem(covariance=r, operator=observing.operator, positions=observing.positions)


def with_errors(observing: ObservingSystem, r: Array, dtype: np.dtype[Any]) -> ObservingSystem:
    """The same H with another R: variances, or a covariance."""
    system: ObservingSystem = block(_observing_with)(r, observing, dtype=dtype)
    return system


@block
def start_of(variances: Tensor, setup: Setup, structures: tuple[Structure, Structure]) -> list[Tensor]:
    """Q and R at the start: those of the record or of the caller.

    If neither has a Q, an estimated Q starts at `variances`, and a fixed Q is zero.
    """
    size = setup.observing.size(setup.dynamics.space.size)
    r = setup.observing.covariance_of(torch.ones(size, dtype=torch.bool)).double()
    error = setup.dynamics.model_error
    if error is not None:
        q = error.matrix(r)
    else:
        q = (torch.zeros_like(variances) if structures[0].fixed else variances).double().diag()
    return [structure.start(value) for structure, value in zip(structures, (q, r), strict=True)]


@block
def _climate_tensors(like: Tensor, setup: Setup, seed: int) -> tuple[Tensor, Tensor]:
    check_linearised(setup.dynamics, setup.observing, seed, like)
    return climate_moments(setup.dynamics, seed, like)


def _climate(setup: Setup, seed: int, device: str) -> tuple[Array, Array]:
    """Mean (N,) and covariance (N, N) of the climatology. The derivatives of model and operator are checked."""
    moments: tuple[Array, Array] = _climate_tensors(np.zeros(()), setup, seed, dtype=np.dtype("f8"), device=device)
    return moments


def _prepared(scheme: Scheme, setup: Setup, observation: Array, seed: int, device: str) -> Scheme:
    """Prepare a scheme for a record with this R, and tune it on the record's leading part."""
    in_block()
    whole = {"rows": slice(0, observation.shape[0]), "columns": slice(0, observation.shape[1])}
    return scheme.prepared(make_record(setup, observation, **whole, seed=seed, device=device), setup, observation)


@block
def _scores_block(
    data: Sequence[Tensor],
    rows: slice,
    columns: slice,
    setup: Setup,
    prior: tuple[Tensor, Tensor],
    estimate: tuple[Tensor, Tensor],
    burn_in: int,
    groups: int,
    whole: tuple[bool, bool],
) -> dict[str, Tensor]:
    """Scores of some trajectories, (B, G, ...)."""
    q, r = estimate
    record = setup.record(data[0], rows=rows, columns=columns, seed=0)
    record = replace(record, observing=_observing_with(r, record.observing))
    start = Gaussian(*(moment.expand(len(data[0]), *moment.shape) for moment in prior))
    return dict(vars(scores(record, as_matrix(q), start, burn_in=burn_in, groups=groups, whole=whole)))


@block
def _statistics_block(
    data: Sequence[Tensor],
    rows: slice,
    columns: slice,
    setup: Setup,
    scheme: Scheme,
    seed: int,
    burn_in: int,
    groups: int,
    whole: bool,
) -> dict[str, Tensor]:
    """Desroziers' statistics of some trajectories, (B, G, ...); NaN for trajectories that diverged."""
    method = scheme.method_on(setup.dtype, str(data[0].device))
    record = setup.record(data[0], rows=rows, columns=columns, seed=seed)
    sums, diverged = desroziers(method, record, burn_in=burn_in, groups=groups, whole=whole)
    lost = diverged.reshape(-1, 1, 1)
    return {
        name: torch.where(lost if value.ndim == 3 else lost[..., None], torch.nan, value)
        for name, value in vars(sums).items()
    }


@block
def _adapted_block(
    data: Sequence[Tensor],
    rows: slice,
    columns: slice,
    setup: Setup,
    prior: tuple[Tensor, Tensor],
    start: tuple[Tensor, Tensor],
    structures: tuple[Structure, Structure],
    smoothing: float,
    burn_in: int,
) -> dict[str, Tensor]:
    """Sums, over some trajectories, of the estimates after each cycle, (1, K, ...)."""
    record = setup.record(data[0], rows=rows, columns=columns, seed=0)
    first = Gaussian(*(moment.expand(len(data[0]), *moment.shape) for moment in prior))
    series: dict[str, list[Tensor]] = {}
    for one in adapted(record, first, start, structures, smoothing=smoothing, burn_in=burn_in):
        alive = one.alive
        innovation = one.innovation[alive]
        row = {"alive": alive.double().sum(), "innovation": innovation.nansum()}
        row["seen"] = innovation.isfinite().double().sum()
        for name, value in (("model", one.model[alive]), ("observation", one.observation[alive])):
            row |= {name: value.sum(0), f"{name}_square": value.square().sum(0)}
        for name, value in row.items():
            series.setdefault(name, []).append(value)
    return {name: torch.stack(values)[None] for name, values in series.items()}
