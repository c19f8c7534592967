"""The loop of a training: steps, validations, checkpoints and the history."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from ..core.interruption import Interruption
from ..core.learning.named_tensors import prefixed, under
from ..core.learning.schedules import linear_decay
from ..core.learning.trainer import Trainer
from ..core.log import TRAINING
from ..core.progress import bar_of, showing_bars
from ..records.blocks import array_to_tensor, tensor_to_array
from ..records.checkpoint import Checkpoint
from ..records.location import StoreLike
from .data import TrainingData, burn_in

_SAVE_EVERY = 30.0  # seconds between checkpoints


@dataclass(frozen=True)
class Budget:
    """The length of a training: a number of gradient steps, or of minutes. The other is None."""

    steps: int | None
    minutes: float | None

    def spent(self, steps: int, seconds: float) -> float:
        """Share of the budget that these steps, or these seconds, take."""
        if self.steps is not None:
            return steps / self.steps
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)

    @property
    def total(self) -> float:
        """Steps, or seconds."""
        if self.steps is not None:
            return self.steps
        assert self.minutes is not None
        return 60.0 * self.minutes

    def used(self, steps: int, seconds: float) -> float:
        """Steps, or seconds, of the total that are over, at most the total."""
        return min(self.total, steps if self.steps is not None else seconds)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.minutes:g} minutes"


@dataclass(frozen=True)
class Course:
    """How a training goes on, and when it stops.

    Attributes
    ----------
    budget : Budget
    validate_every : int
        Steps between validations.
    schedule : callable
        Factor of the learning rate, a function of the share of the budget that is spent.
    patience : int, optional
        Number of validations without a better one after which the training stops.
    on_validation : callable, optional
        Called after each validation; the training stops if it returns True.
    """

    budget: Budget
    validate_every: int
    schedule: Callable[[float], float] = linear_decay
    patience: int | None = None
    on_validation: Callable[[dict[str, Any]], Any] | None = None


class Loop:
    """Steps, validations and checkpoints until the budget is spent, or until something else stops the training.

    Parameters
    ----------
    trainer : Trainer
    data : TrainingData
    course : Course
    checkpoint : path or Zarr store, optional
        Where to save. A training goes on from a checkpoint that exists there.
    identity : mapping
        JSON that identifies this training.
    from_trained : bool
        Whether the weights at the start may be the best ones.

    Attributes
    ----------
    interrupted : bool
        Whether Ctrl-C ended the training before its budget was spent.
    interrupted_late : bool
        Whether Ctrl-C came in the last step or after it, so that the training is whole.
    stopped_by : str or None
        "patience" or "on_validation", if one of these stopped the training.
    failed : bool
        Whether `on_validation` raised an error.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: TrainingData,
        course: Course,
        checkpoint: StoreLike | None,
        identity: Mapping[str, Any],
        from_trained: bool = False,
    ) -> None:
        self.trainer, self.data, self.from_trained = trainer, data, from_trained
        self.course, self.budget = course, course.budget
        self.interrupted, self.interrupted_late, self.failed = False, False, False
        self.stopped_by: str | None = None
        self.rows: list[_Row] = []
        self._losses: list[tuple[float, float, int]] = []  # loss, RMSE and restarts of the steps since the last row
        self._begin = 0.0  # time on the clock
        self.elapsed_before = 0.0  # seconds of earlier runs that were resumed
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, identity)
        saved = None if self.checkpoint is None else self.checkpoint.load()
        if saved is not None:
            self._restore(*saved)
            TRAINING.info("goes on at step %d of %s from %s", self.trainer.step_count, self.budget, checkpoint)

    def run(self, progress: bool | Mapping[str, Any]) -> float:
        """Train; return the seconds of the training, including those before a resumption.

        Ctrl-C ends the training early, and `interrupted` says so. An error of `on_validation` ends the training too: a
        checkpoint is saved first.

        Raises
        ------
        KeyboardInterrupt
            At Ctrl-C before the first step, and at a second one.
        """
        self._begin = clock.perf_counter()
        form = "{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
        options = {"seconds": 1.0, "bar_format": form, **(progress if isinstance(progress, Mapping) else {})}
        options = {"initial": self._used(self.elapsed_before), **options}
        with (
            Interruption() as interruption,
            bar_of(self.budget.total, "training", shown=progress is not False, **options) as bar,
        ):
            try:
                elapsed = self._steps(interruption, bar, not bar.disable)
            except KeyboardInterrupt:  # within a step, and not from the first Ctrl-C
                if interruption.noted or not self.trainer.step_count:
                    raise
                self.interrupted, elapsed = True, self._elapsed()
            except BrokenProcessPool as error:
                if not interruption.noted:
                    raise
                if not self.trainer.step_count:  # the Ctrl-C came while helpers were still starting
                    raise KeyboardInterrupt from error
                self.interrupted, elapsed = True, self._elapsed()
            else:  # after an error, weights and source do not fit each other: the last save stays
                if self.checkpoint is not None:
                    self._save(elapsed)
            if self.interrupted and not any(row.step for row in self.rows):
                self._validate(elapsed, self._rate(elapsed))
            self.interrupted_late = interruption.noted and not self.interrupted
        return elapsed

    def _steps(self, interruption: Interruption, bar: Any, bars: bool) -> float:
        """Take steps until the budget is spent or Ctrl-C is noted; return the seconds so far."""
        saved, looked_at = self.elapsed_before, -1
        if self.from_trained and not self.rows and not self.trainer.step_count:
            bar.set_postfix_str("validating")
            self._validate(0.0, self.course.schedule(0.0))
            self._show(bar)
            self._tell()
        self._start_clock()
        while True:
            elapsed = self._elapsed()
            rate = self._rate(elapsed)
            bar.n = used = self._used(elapsed)
            bar.update(0)
            if self.course.patience is not None and len(self.rows) > looked_at:
                looked_at = len(self.rows)
                if self._stale() >= self.course.patience:
                    self.stopped_by = "patience"
            if self.stopped_by is not None:
                TRAINING.info("stopped by %s at step %d", self.stopped_by, self.trainer.step_count)
                return elapsed
            if used >= self.budget.total:
                break
            if interruption.noted:
                if not self.trainer.step_count:
                    raise KeyboardInterrupt
                self.interrupted = True
                return elapsed
            if self.checkpoint is not None and elapsed - saved > _SAVE_EVERY:
                self._save(elapsed)
                saved = self._elapsed()
            with showing_bars(bars and not self.trainer.step_count):  # a teacher settles before the first window
                window = self.data.windows.window(self.trainer.step_count)
            self._start_clock()
            report = self.trainer.step(window, rate)
            self._losses.append((report.loss, report.rmse, report.restarts))
            if self.trainer.step_count % self.course.validate_every == 0:
                self._validate(elapsed, rate)
                self._show(bar)
                self._tell()
        if not self.rows or self.rows[-1].step != self.trainer.step_count:
            self._validate(elapsed, self.course.schedule(1.0))
            self._tell()
        self._show(bar, refresh=True)
        return elapsed

    def _start_clock(self) -> None:
        """Begin to count seconds with the first step: the preparation and the validation of the start do not count."""
        if not self.trainer.step_count:
            self._begin = clock.perf_counter()

    def _show(self, bar: Any, refresh: bool = False) -> None:
        """Show the best validation in the bar."""
        bar.set_postfix_str(f"{self.data.score} {self.trainer.best_score:.4f}", refresh=refresh)

    def _elapsed(self) -> float:
        """Seconds of training until now."""
        return self.elapsed_before + clock.perf_counter() - self._begin

    def _used(self, elapsed: float) -> float:
        """Steps, or seconds, of the budget that are over."""
        return self.budget.used(self.trainer.step_count, elapsed)

    def _rate(self, elapsed: float) -> float:
        """Factor of the learning rate."""
        return self.course.schedule(self.budget.spent(self.trainer.step_count, elapsed))

    def _validate(self, elapsed: float, rate: float) -> None:
        """Validate, and add a row to the history."""
        rewinds = self.trainer.rewinds
        score = self.trainer.validate(self.data.validation, burn_in(self.data.validation.observation.shape[1]))
        steps = np.array(self._losses).reshape(-1, 3)
        finite = steps[np.isfinite(steps[:, :2]).all(1)]
        loss, rmse = finite[:, :2].mean(0) if len(finite) else (np.nan, np.nan)
        row = _Row(
            step=self.trainer.step_count,
            loss=float(loss),
            rmse=float(rmse),
            validation_rmse=score,
            rate=rate,
            restarts=int(steps[:, 2].sum()),
            rewinds=self.trainer.rewinds,
            seconds=elapsed,
            validation_loss=self.trainer.validation_loss,
        )
        self.rows.append(row)
        self._losses = []
        best = ", the best so far" if self.trainer.improved else ""
        words = row.step, self.budget, elapsed, row.loss, self.data.score, score, best
        TRAINING.info("step %d of %s, %.1f s: loss %.4g, %s %.4g%s", *words)
        if self.trainer.rewinds > rewinds:
            TRAINING.debug("back to the best weights, at lower rates")

    def _tell(self) -> None:
        """Tell `on_validation` of the last validation."""
        if self.course.on_validation is None:
            return
        row = self.rows[-1]
        told: dict[str, Any] = {
            "step": row.step,
            "seconds": row.seconds,
            "loss": row.loss,
            "validation_rmse": row.validation_rmse,
            "best": self.trainer.improved,
            "best_validation_rmse": self.trainer.best_score,
        }
        if not math.isnan(row.validation_loss):
            told["validation_loss"] = row.validation_loss
        try:
            answer = self.course.on_validation(told)
        except BaseException:
            self.failed = True
            if self.checkpoint is not None:
                self._save(self._elapsed())
            raise
        if isinstance(answer, (bool, np.bool_)) and answer:
            self.stopped_by = "on_validation"

    def _stale(self) -> int:
        """Number of validations since the best one, also before a resumption; of all validations if none was finite."""
        score = np.array([row.validation_rmse for row in self.rows])
        loss = np.array([row.validation_loss for row in self.rows])
        judged = score if np.isnan(loss).all() else loss
        judged = np.where(np.isfinite(score + judged), judged, np.inf)
        return len(judged) if not np.isfinite(judged).any() else len(judged) - 1 - int(judged.argmin())

    def history(self) -> xr.Dataset:
        """The rows so far, along `step`."""
        columns = {field.name: np.array([getattr(row, field.name) for row in self.rows]) for field in fields(_Row)}
        step = columns.pop("step")
        if np.isnan(columns["validation_loss"]).all():
            del columns["validation_loss"]
        told = _HISTORY if self.data.validation.truth is not None else _HISTORY | _WITHOUT_TRUTH
        return xr.Dataset(
            {name: ("step", values, told[name]) for name, values in columns.items()},
            {"step": ("step", step, {"long_name": "gradient steps", "units": "1"})},
            {"title": "training history"},
        )

    def _save(self, elapsed: float) -> None:
        assert self.checkpoint is not None
        arrays = prefixed("trainer/", self.trainer.arrays()) | prefixed("source/", self.data.windows.arrays())
        scalars = {
            "trainer": self.trainer.scalars(),
            "rows": [list(asdict(row).values()) for row in self.rows],
            "since": self._losses,
            "elapsed": elapsed,
        }
        self.checkpoint.save({name: tensor_to_array(value) for name, value in arrays.items()}, scalars)
        TRAINING.debug("step %d is saved in %s", self.trainer.step_count, self.checkpoint.store)

    def _restore(self, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
        device = str(next(self.trainer.network.parameters()).device)
        tensors = {name: array_to_tensor(value, device=device) for name, value in arrays.items()}
        self.trainer.restore(under(tensors, "trainer/"), scalars["trainer"])
        self.data.windows.restore(under(tensors, "source/"))
        self.rows = [_Row(*row) for row in scalars["rows"]]
        self._losses = [tuple(entry) for entry in scalars["since"]]
        self.elapsed_before = float(scalars["elapsed"]) if self.trainer.step_count else 0.0


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
    validation_loss: float = math.nan  # for objectives that choose the best weights by the loss


_HISTORY = {
    "loss": {"long_name": "mean training loss since the last entry", "units": "1"},
    "rmse": {
        "long_name": "training analysis RMSE since the last entry, lost trajectories left out",
        "units": "1",
    },
    "validation_rmse": {"long_name": "validation analysis RMSE", "units": "1"},
    "rate": {"long_name": "factor of the optimiser's learning rates, by the schedule", "units": "1"},
    "restarts": {"long_name": "trajectories lost and restarted since the last entry", "units": "1"},
    "rewinds": {"long_name": "times so far that training went back to the best weights", "units": "1"},
    "seconds": {"long_name": "time since the first step", "units": "s"},
    "validation_loss": {"long_name": "validation loss, by which the best weights are chosen", "units": "1"},
}
_WITHOUT_TRUTH = {
    "rmse": {
        "long_name": "training RMS innovation since the last entry, lost trajectories left out",
        "units": "1",
    },
    "validation_rmse": {"long_name": "validation RMS innovation", "units": "1"},
}
