"""An estimation of Q and R over a record: its plan, its computation and its labels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import dask
import numpy as np
import xarray as xr

from ..core.dynamics import dynamics_to_json
from ..core.estimation.structures import Structure
from ..core.log import RUNS
from ..core.progress import bar_of
from ..records.checkpoint import Checkpoint
from ..records.observing import identity as observing_identity
from ..records.record import LabelledRecord
from ..records.schema import ITERATION, TIME, attributes
from ..records.store import digest, sealed
from ..records.watch import attribute, warn_of
from .error_labels import labelled_estimates
from .error_methods import Outcome, desroziers_passes, expectation_maximisation, lag_innovations
from .error_passes import Estimate, Passes, start_of
from .error_request import Request

_SAMPLES = 20  # least number of samples (trajectories times groups of times) for standard errors
_OF_MATRICES = 50  # least number of samples for standard errors of full covariances
_FEWEST = 10  # least number of times in a group
_PER_NUMBER = 5  # samples for each variance, if the record is long enough
_OF_CLIMATE = 0.01  # share of the climate's variance at which Q starts if nothing names a Q
_NUMBER = {"long_name": "iteration; 0 is the start", "units": "1"}
_SERIES = {
    "log_likelihood": ("log-likelihood of the observations after the burn-in", "1"),
    "innovation_ratio": ("mean square innovation over what Q and R expect", "1"),
    "lost": ("trajectories that the filter lost, and that do not count", "1"),
}


class Estimation:
    """An estimation that is planned but not computed yet.

    Attributes
    ----------
    passes : Passes
    structures : tuple of Structure
        Structures of Q and of R.
    """

    def __init__(self, labelled: LabelledRecord, request: Request, seed: int, device: str, progress: bool) -> None:
        self.labelled, self.request, self.seed, self.progress = labelled, request, seed, progress
        self.structures = request.structures(labelled)
        rows, cycles = labelled.observation.shape[:2]
        burn_in = request.first(labelled)
        variances = sum(one.count for one in self.structures if not one.whole)
        wanted = max(_OF_MATRICES if any(one.whole for one in self.structures) else _SAMPLES, _PER_NUMBER * variances)
        groups = max(1, min(math.ceil(wanted / rows), (cycles - burn_in) // _FEWEST))
        dtype = labelled.setup.dtype if request.method == "desroziers" else np.dtype(np.float64)
        self.passes = Passes.over(
            labelled, self.structures, dtype=dtype, burn_in=burn_in, groups=groups, seed=seed, device=device
        )

    def identity(self) -> dict[str, Any]:
        """Everything that determines the estimate, for the store of an unfinished one."""
        setup, request, passes = self.labelled.setup, self.request, self.passes
        count = passes.observation.numblocks[0]
        blocks = dask.compute(*(dask.delayed(digest)(passes.observation.blocks[k]) for k in range(count)))
        scheme, tolerance = None, request.tolerance
        if request.scheme is not None:
            method = request.scheme.method_on(setup.dtype, "cpu")
            scheme = [method.name, method.config(), request.scheme.digest]
        return {
            "kind": "estimate of errors",
            "method": [request.method, dict(request.kinds), scheme, request.smoothing, request.accelerate, tolerance],
            "dynamics": dynamics_to_json(setup.dynamics),
            "record": digest(
                setup.steps,
                setup.trajectory,
                [passes.burn_in, passes.groups, self.seed, str(passes.setup.dtype)],
                *observing_identity(setup.observing, setup.dynamics),
                *blocks,
            ),
        }

    def result(self, checkpoint: Checkpoint | None) -> xr.Dataset:
        """Estimate, warn of faults, and label the result."""
        outcome, along = self._outcome(checkpoint), ITERATION
        if self.request.method == "lag-innovations":
            along = TIME
        texts = self._verdict(outcome)
        warn_of(texts)
        variables: dict[str, Any] = {}
        for name, structure in zip(("model", "observation"), self.structures, strict=True):
            if name == "model" and self.request.method == "desroziers":
                continue
            history = np.stack(getattr(outcome, name))
            blank = np.full(history.shape[1:], np.nan)
            variables |= labelled_estimates(
                name,
                self.labelled,
                structure,
                history,
                outcome.errors.get(name, blank),
                along,
                outcome.spread.get(name),
                diverged=outcome.diverged,
            )
        for name, numbers in outcome.series.items():
            long_name, units = _SERIES[name]
            padded = [*numbers, *[math.nan] * (len(outcome.model) - len(numbers))]
            variables[name] = xr.DataArray(padded, dims=along, attrs={"long_name": long_name, "units": units})
        if outcome.forecast is not None:
            variables |= labelled_estimates(
                "forecast", self.labelled, Structure("diagonal", self.structures[1].parts), outcome.forecast[None], None
            )
        flags = {"diverged": "the estimate has diverged", "converged": "the estimate has converged"}
        for name, long_name in flags.items():
            variables[name] = xr.DataArray(getattr(outcome, name), attrs={"long_name": long_name})
        result = xr.Dataset(variables)
        if along == TIME:
            result = result.assign_coords({TIME: self.labelled.observation[TIME]})
        else:
            result = result.assign_coords({ITERATION: (ITERATION, np.arange(len(outcome.model)), _NUMBER)})
        result = result.drop_attrs(deep=False)
        described = attributes(self.labelled.setup.dynamics, **self._described(outcome))
        sealed_result: xr.Dataset = sealed(result).assign_attrs(described | attribute(texts))
        return sealed_result

    def _described(self, outcome: Outcome) -> dict[str, Any]:
        request = self.request
        described: dict[str, Any] = {
            "title": f"errors of model and observations, estimated by {request.method}",
            "method": request.method,
            "structure": {"model_error": request.kinds["model"], "observation_error": request.kinds["observation"]},
            "burn_in": self.passes.burn_in,
            "passes": outcome.passes,
            "seed": self.seed,
        }
        if request.method == "lag-innovations":
            described["smoothing"] = self._smoothing
        if request.scheme is not None:
            method = request.scheme.method_on(self.labelled.setup.dtype, "cpu")
            described |= {"scheme": method.name, "scheme_parameters": method.config()}
        return described

    @property
    def _smoothing(self) -> float:
        """Number of cycles that moving averages look back."""
        cycles = self.labelled.observation.sizes[TIME] - self.passes.burn_in
        return max(10.0, cycles / 10) if self.request.smoothing is None else self.request.smoothing

    def _outcome(self, checkpoint: Checkpoint | None) -> Outcome:
        request, passes, labelled = self.request, self.passes, self.labelled
        setup = labelled.setup
        total, done = 1 if request.method == "lag-innovations" else request.iterations, itertools.count(1)
        with bar_of(total, "estimating", shown=self.progress, unit="pass") as bar:

            def tick() -> None:
                bar.update()
                RUNS.info("pass %d of %d at most of the estimate is done", next(done), total)

            if request.method == "desroziers":
                assert request.scheme is not None
                start = self._start(np.zeros(setup.dynamics.space.size))
                settings: dict[str, Any] = {"iterations": request.iterations, "tolerance": request.tolerance}
                return desroziers_passes(passes, request.scheme, start, **settings, checkpoint=checkpoint, tick=tick)
            prior, variances = passes.prior()
            start = self._start(_OF_CLIMATE * variances)
            if request.method == "lag-innovations":
                outcome = lag_innovations(passes, start, prior, smoothing=self._smoothing)
                tick()
                return outcome
            return expectation_maximisation(
                passes,
                start,
                prior,
                iterations=request.iterations,
                tolerance=request.tolerance,
                accelerate=request.accelerate,
                checkpoint=checkpoint,
                tick=tick,
            )

    def _start(self, variances: Any) -> Estimate:
        """Q and R at which the estimate starts.

        Raises
        ------
        ValueError
            If Q is zero and is to be estimated by a method that cannot change a Q of zero.
        """
        q, r = start_of(variances, self.passes.setup, self.structures)
        smallest = float(np.linalg.eigvalsh(q)[0] if q.ndim == 2 else q.min())
        if not self.structures[0].fixed and not smallest > 0:
            raise ValueError(
                f"Q to start from has the variance {smallest:g}: expected positive ones, as an estimate by "
                f"{self.request.method!r} leaves zero as it is; give model_error=, such as a tenth of the state's "
                "deviation"
            )
        return q, r

    def _verdict(self, outcome: Outcome) -> list[str]:
        """Sentences of the warnings."""
        texts, request = list(outcome.texts), self.request
        if outcome.diverged:
            texts.append(
                f"the estimate by {request.method!r} diverged after {len(outcome.model) - 1} steps: it is NaN, and its "
                "history is kept. Look at the model's time step, the units of the record and where the estimate starts"
            )
        elif not outcome.converged:
            texts.append(
                f"the estimate by {request.method!r} has not converged to {request.tolerance:g} in {outcome.passes} "
                "passes: look at its history, and give more iterations="
            )
        lost = int(outcome.series.get("lost", [0])[-1 if request.method != "desroziers" else -2])
        rows = len(self.labelled.setup.trajectory)
        if lost and not outcome.diverged:
            texts.append(f"{lost} of {rows} trajectories were lost by the filter, and do not count")
        return texts
