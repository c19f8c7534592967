"""The loop that fits a model's network: steps along a curriculum, validations, checkpoints and a history."""

from __future__ import annotations

import copy
import math
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.checks import integer, real, shown
from ..core.interruption import KEPT_TEXT, Interruption, TrainingInterrupted
from ..core.learning.model_fit import ModelFit
from ..core.learning.schedules import linear_decay
from ..core.log import TRAINING
from ..core.progress import bar_of
from ..records.blocks import array_to_tensor, tensor_to_array
from ..records.checkpoint import Checkpoint
from ..records.location import StoreLike
from .stretches import Stretches

_SAVE_EVERY = 30.0  # seconds between checkpoints
_VALIDATED = 512  # most stretches of a validation
_LONGEST = 1000  # most intervals of a rollout


@dataclass(frozen=True)
class FitSettings:
    """How a model's network is fitted.

    Attributes
    ----------
    steps, batch : int
        Number of gradient steps, and number of stretches in each step.
    rollouts : tuple of int
        Numbers of intervals that forecasts run over, one after another. Each takes an equal share of the steps.
    learning_rate : float
        Learning rate of Adam. It falls linearly to zero.
    validate_every, seed : int
    """

    steps: int
    batch: int
    rollouts: tuple[int, ...]
    learning_rate: float
    validate_every: int
    seed: int

    @classmethod
    def checked(
        cls, *, steps: Any, batch: Any, rollouts: Any, learning_rate: Any, validate_every: Any, seed: int
    ) -> FitSettings:
        """Check the settings of a caller.

        Raises
        ------
        TypeError, ValueError
            If a setting is no number, or is out of range.
        """
        if isinstance(rollouts, (str, bytes)) or not isinstance(rollouts, Sequence) or not rollouts:
            raise TypeError(f"rollouts={shown(rollouts)}: expected a list of numbers of intervals, such as (1, 2, 4)")
        lengths = tuple(integer("rollouts", one, least=1, most=_LONGEST) for one in rollouts)
        return cls(
            integer("steps", steps, least=1),
            integer("batch", batch, least=1),
            lengths,
            real("learning_rate", learning_rate, above=0.0),
            integer("validate_every", validate_every, least=1),
            seed,
        )

    def length(self, step: int) -> int:
        """Number of intervals of the rollouts at a step."""
        return self.rollouts[min(len(self.rollouts) - 1, step * len(self.rollouts) // self.steps)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "rollouts": list(self.rollouts)}


def fit_model(
    fit: ModelFit,
    training: Stretches,
    validation: Stretches,
    settings: FitSettings,
    *,
    checkpoint: StoreLike | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit a network, and give it the weights that are best by the validation.

    Validation forecasts run over the longest rollout. A killed call goes on from its checkpoint, and a checkpoint
    of other states is refused. Ctrl-C ends the fit after the step at hand, and the checkpoint is saved.

    Raises
    ------
    RuntimeError
        If no validation was finite.
    TrainingInterrupted
        At Ctrl-C; its `network` has the best weights until then.

    Returns
    -------
    dict
        The history as JSON. Lists with one entry for each validation: `step`, `loss`, `one_interval_error`, and
        `error`, the root mean square over the lead times of the longest rollout; errors are in standard deviations of
        the climate. `seconds` is the time of the fit.
    """
    saves = None
    if checkpoint is not None:
        digests = {"training": training.identity(), "validation": validation.identity()}
        saves = Checkpoint(checkpoint, {**(identity or {}), "fit": settings.to_json(), "states": digests})
    history: dict[str, Any] = {"step": [], "loss": [], "one_interval_error": [], "error": []}
    before = 0.0
    if saves is not None and (saved := saves.load()) is not None:
        device = training.device
        fit.restore({n: array_to_tensor(v, device=device) for n, v in saved[0].items()}, saved[1]["fit"])
        history, before = saved[1]["history"], float(saved[1]["seconds"])
        TRAINING.info("goes on at step %d of %d from %s", fit.step_count, settings.steps, saves.store)
    held_back = validation.spaced(_VALIDATED, max(settings.rollouts))
    begin = last = clock.perf_counter()
    losses: list[float] = []

    def save() -> None:
        if saves is not None:
            arrays = {name: tensor_to_array(value) for name, value in fit.arrays().items()}
            seconds = before + clock.perf_counter() - begin
            saves.save(arrays, {"fit": fit.scalars(), "history": history, "seconds": seconds})
            TRAINING.debug("step %d is saved in %s", fit.step_count, saves.store)

    bar = bar_of(settings.steps, "fitting", shown=progress, initial=fit.step_count)
    try:
        with bar, Interruption() as interruption:
            while True:
                if interruption.noted:
                    save()
                    raise KeyboardInterrupt
                if fit.step_count >= settings.steps:
                    break
                step = fit.step_count
                states = training.draw(step, settings.batch, settings.length(step))
                losses.append(fit.step(states, linear_decay(step / settings.steps)))
                bar.update()
                if fit.step_count % settings.validate_every == 0 or fit.step_count == settings.steps:
                    errors = fit.validate(held_back)
                    row = fit.step_count, _mean(losses), float(errors[0]), float(errors.square().mean().sqrt())
                    for name, value in zip(("step", "loss", "one_interval_error", "error"), row, strict=True):
                        history[name].append(value if math.isfinite(value) else None)
                    losses = []
                    bar.set_postfix_str(f"error {row[-1]:.4f} of the deviation", refresh=False)
                    words = row[0], settings.steps, clock.perf_counter() - begin, row[1], row[3]
                    TRAINING.info("step %d of %d, %.1f s: loss %.4g, error %.4g of the deviation", *words)
                now = clock.perf_counter()
                if now - last > _SAVE_EVERY or fit.step_count == settings.steps:
                    save()
                    last = clock.perf_counter()
    except KeyboardInterrupt as error:
        raise _interrupted(fit, settings, saves) from error
    if math.isinf(fit.best_score):
        raise RuntimeError(
            "no validation was finite: forecasts of the network diverge. Try a lower learning_rate=, shorter rollouts= "
            "or a smaller timestep="
        )
    fit.network.load_state_dict(fit.best)
    return {**history, "seconds": round(before + clock.perf_counter() - begin, 1)}


def _interrupted(fit: ModelFit, settings: FitSettings, saves: Checkpoint | None) -> TrainingInterrupted:
    """The exception at Ctrl-C, with the best network until then."""
    if math.isfinite(fit.best_score):
        fit.network.load_state_dict(fit.best)
    saved = "" if saves is None else "; the same call goes on from checkpoint="
    text = f"fitting was interrupted at step {fit.step_count} of {settings.steps}{saved}. {KEPT_TEXT}"
    return TrainingInterrupted(text, copy.deepcopy(fit.network).eval().cpu())


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else math.nan
