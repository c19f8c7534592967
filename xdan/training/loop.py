"""The loop of a training: steps, validations, checkpoints and the history."""

from __future__ import annotations

import math
import signal
import threading
import time as clock
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from ..core.learning.named_tensors import prefixed, under
from ..core.learning.trainer import Trainer, linear_decay
from ..core.progress import showing_bars
from ..records.blocks import array_to_tensor, tensor_to_array
from ..records.checkpoint import Checkpoint
from ..records.location import StoreLike
from .data import TrainingData, burn_in

_SAVE_EVERY = 30.0  # seconds between checkpoints
_BAR_UNITS = 1000  # units of a progress bar over minutes


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


class Interruption:
    """Let Ctrl-C end a training between two steps, when weights and checkpoint fit each other.

    The first Ctrl-C is noted; a second one raises KeyboardInterrupt at once. Nothing changes outside of the main
    thread, or if the process has another handler of Ctrl-C.

    Attributes
    ----------
    noted : bool
        Whether there was a Ctrl-C.
    """

    def __init__(self) -> None:
        self.noted = False
        self._listening = False

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._listening = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _note(self, *_: Any) -> None:
        self.noted = True
        self._leave()

    def _leave(self) -> None:
        if self._listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._listening = False


class Loop:
    """Steps, validations and checkpoints until the budget is spent.

    Parameters
    ----------
    trainer : Trainer
    data : TrainingData
    budget : Budget
    validate_every : int
        Steps between validations.
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
    """

    def __init__(
        self,
        trainer: Trainer,
        data: TrainingData,
        budget: Budget,
        validate_every: int,
        checkpoint: StoreLike | None,
        identity: Mapping[str, Any],
        from_trained: bool = False,
    ) -> None:
        self.trainer, self.data, self.from_trained = trainer, data, from_trained
        self.budget, self.validate_every = budget, validate_every
        self.interrupted = False
        self.rows: list[_Row] = []
        self._losses: list[tuple[float, float, int]] = []  # loss, RMSE and restarts of the steps since the last row
        self._begin = 0.0  # time on the clock
        self.elapsed_before = 0.0  # seconds of earlier runs that were resumed
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, identity)
        saved = None if self.checkpoint is None else self.checkpoint.load()
        if saved is not None:
            self._restore(*saved)

    def run(self, progress: bool | Mapping[str, Any]) -> float:
        """Train; return the seconds of the training, including those before a resumption.

        Ctrl-C ends the training early, and `interrupted` says so.

        Raises
        ------
        KeyboardInterrupt
            At Ctrl-C before the first step, and at a second one.
        """
        self._begin = clock.perf_counter()
        form = "{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
        options = {
            "desc": "training",
            "mininterval": 1.0,
            **(progress if isinstance(progress, Mapping) else {}),
        }
        with (
            Interruption() as interruption,
            tqdm(total=self._bar_total, disable=progress is False, bar_format=form, **options) as bar,
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
                self._validate(elapsed, linear_decay(self._spent(elapsed)))
        return elapsed

    def _steps(self, interruption: Interruption, bar: Any, bars: bool) -> float:
        """Take steps until the budget is spent or Ctrl-C is noted; return the seconds so far."""
        saved = self.elapsed_before
        if self.from_trained and not self.trainer.step_count:
            self._validate(self._elapsed(), linear_decay(0.0))
        while True:
            elapsed = self._elapsed()
            spent = self._spent(elapsed)
            bar.n = min(self._bar_total, int(spent * self._bar_total))
            if spent >= 1.0:
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
            report = self.trainer.step(window, linear_decay(spent))
            self._losses.append((report.loss, report.rmse, report.restarts))
            if self.trainer.step_count % self.validate_every == 0:
                self._validate(elapsed, linear_decay(spent))
                bar.set_postfix_str(f"validation RMSE {self.trainer.best_score:.4f}")
            bar.update(0)
        if not self.rows or self.rows[-1].step != self.trainer.step_count:
            self._validate(elapsed, 0.0)
        bar.set_postfix_str(f"validation RMSE {self.trainer.best_score:.4f}")
        return elapsed

    @property
    def _bar_total(self) -> int:
        return _BAR_UNITS if self.budget.steps is None else self.budget.steps

    def _elapsed(self) -> float:
        """Seconds of training until now."""
        return self.elapsed_before + clock.perf_counter() - self._begin

    def _spent(self, elapsed: float) -> float:
        return self.budget.spent(self.trainer.step_count, elapsed)

    def _validate(self, elapsed: float, rate: float) -> None:
        """Validate, and add a row to the history."""
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

    def history(self) -> xr.Dataset:
        """The rows so far, along `step`."""
        columns = {field.name: np.array([getattr(row, field.name) for row in self.rows]) for field in fields(_Row)}
        step = columns.pop("step")
        if np.isnan(columns["validation_loss"]).all():
            del columns["validation_loss"]
        return xr.Dataset(
            {name: ("step", values, _HISTORY[name]) for name, values in columns.items()},
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

    def _restore(self, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
        device = str(next(self.trainer.network.parameters()).device)
        tensors = {name: array_to_tensor(value, device=device) for name, value in arrays.items()}
        self.trainer.restore(under(tensors, "trainer/"), scalars["trainer"])
        self.data.windows.restore(under(tensors, "source/"))
        self.rows = [_Row(*row) for row in scalars["rows"]]
        self._losses = [tuple(entry) for entry in scalars["since"]]
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
    validation_loss: float = math.nan  # for objectives that choose the best weights by the loss


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
    "validation_loss": {"long_name": "validation loss, by which the best weights are chosen", "units": "1"},
}
