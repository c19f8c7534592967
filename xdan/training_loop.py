"""The loop of a training: steps, validations, checkpoints, and the history that they leave."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from .blocks import array_to_tensor, tensor_to_array
from .core.training import Trainer, linear_decay
from .store import Checkpoint, StoreLike
from .training_data import TrainingData

_BURN_IN = 50  # cycles left out of a validation


class Loop:
    """Steps, validations and checkpoints until the budget is spent.

    Parameters
    ----------
    trainer : Trainer
    data : TrainingData
    steps, minutes : optional
        The budget, one of them.
    validate_every : int
    checkpoint : path or Zarr store, optional
        What is found there is taken up.
    about : mapping
        JSON that tells this training from another.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: TrainingData,
        steps: int | None,
        minutes: float | None,
        validate_every: int,
        checkpoint: StoreLike | None,
        about: Mapping[str, Any],
    ) -> None:
        self.trainer, self.data = trainer, data
        self.steps, self.minutes, self.validate_every = steps, minutes, validate_every
        self.rows: list[_Row] = []
        self._since: list[tuple[float, float, int]] = []
        self.elapsed_before = 0.0
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, about)
        found = None if self.checkpoint is None else self.checkpoint.load()
        if found is not None:
            self._restore(*found)

    def run(self, progress: bool | Mapping[str, Any]) -> float:
        """Train; returns the seconds it took, those before a resumption included."""
        begin = saved = clock.perf_counter()
        total = self.steps if self.steps is not None else 1000
        form = "{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
        asked = {
            "desc": "training",
            "mininterval": 1.0,
            **(progress if isinstance(progress, Mapping) else {}),
        }
        with tqdm(total=total, disable=progress is False, bar_format=form, **asked) as bar:
            while True:
                now = clock.perf_counter()
                elapsed = self.elapsed_before + now - begin
                done = self._progress(elapsed)
                bar.n = min(total, int(done * total))
                if done >= 1.0:
                    break
                if self.checkpoint is not None and now - saved > 30.0:
                    self._save(elapsed)
                    saved = clock.perf_counter()
                report = self.trainer.step(self.data.windows.window(self.trainer.step_count), linear_decay(done))
                self._since.append((report.loss, report.rmse, report.restarts))
                if self.trainer.step_count % self.validate_every == 0:
                    self._validate(elapsed, linear_decay(done))
                    bar.set_postfix_str(f"validation RMSE {self.trainer.best_score:.4f}")
                bar.update(0)
            if not self.rows or self.rows[-1].step != self.trainer.step_count:
                self._validate(elapsed, 0.0)
            bar.set_postfix_str(f"validation RMSE {self.trainer.best_score:.4f}")
        if self.checkpoint is not None:
            self._save(elapsed)
        return elapsed

    def _progress(self, elapsed: float) -> float:
        if self.steps is not None:
            return self.trainer.step_count / self.steps
        assert self.minutes is not None
        return elapsed / (60.0 * self.minutes)

    def _validate(self, elapsed: float, rate: float) -> None:
        cycles = self.data.validation.observation.shape[1]
        score = self.trainer.validate(self.data.validation, min(_BURN_IN, cycles // 3))
        since = np.array(self._since) if self._since else np.full((1, 3), np.nan)
        finite = since[np.isfinite(since[:, :2]).all(1)]
        loss, rmse = finite[:, :2].mean(0) if len(finite) else (np.nan, np.nan)
        row = _Row(
            self.trainer.step_count,
            float(loss),
            float(rmse),
            score,
            rate,
            int(np.nansum(since[:, 2])),
            self.trainer.rewinds,
            elapsed,
        )
        self.rows.append(row)
        self._since = []

    def history(self) -> xr.Dataset:
        """What was seen, along `step`."""
        columns = {field.name: np.array([getattr(row, field.name) for row in self.rows]) for field in fields(_Row)}
        step = columns.pop("step")
        return xr.Dataset(
            {name: ("step", values, _HISTORY[name]) for name, values in columns.items()},
            {"step": ("step", step, {"long_name": "gradient steps", "units": "1"})},
            {"title": "training history"},
        )

    def _save(self, elapsed: float) -> None:
        assert self.checkpoint is not None
        arrays = {f"trainer/{name}": value for name, value in self.trainer.arrays().items()}
        arrays |= {f"source/{name}": value for name, value in self.data.windows.arrays().items()}
        scalars = {
            "trainer": self.trainer.scalars(),
            "rows": [list(asdict(row).values()) for row in self.rows],
            "since": self._since,
            "elapsed": elapsed,
        }
        self.checkpoint.save({name: tensor_to_array(value) for name, value in arrays.items()}, scalars)

    def _restore(self, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
        device = str(next(self.trainer.network.parameters()).device)
        named = {name: array_to_tensor(value, device=device) for name, value in arrays.items()}

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}

        self.trainer.restore(under("trainer/"), scalars["trainer"])
        self.data.windows.restore(under("source/"))
        self.rows = [_Row(*row) for row in scalars["rows"]]
        self._since = [tuple(entry) for entry in scalars["since"]]
        self.elapsed_before = float(scalars["elapsed"])


@dataclass(frozen=True)
class _Row:
    step: int
    loss: float
    rmse: float
    validation_rmse: float
    rate: float
    restarts: int
    rewinds: int
    seconds: float


_HISTORY = {
    "loss": {"long_name": "mean training loss since the last entry", "units": "1"},
    "rmse": {
        "long_name": "training analysis RMSE since the last entry, lost trajectories left out",
        "units": "1",
    },
    "validation_rmse": {"long_name": "validation analysis RMSE", "units": "1"},
    "rate": {"long_name": "learning rate, relative", "units": "1"},
    "restarts": {"long_name": "trajectories lost and restarted since the last entry", "units": "1"},
    "rewinds": {"long_name": "times so far that training went back to the best weights", "units": "1"},
    "seconds": {"long_name": "time spent training", "units": "s"},
}
