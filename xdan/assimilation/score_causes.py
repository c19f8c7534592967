"""Warnings about scores, and their causes. Data in memory warn at once, lazy data when they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from ..core.ensemble_scores import trailing
from ..records.schema import Array
from ..records.values import fill_text, leading
from ..records.watch import warn_of

_LEAST_CYCLES = 50  # with fewer cycles, a tenth of them says little
_FAR, _MATTERS = 1.5, 1.05  # RMSE of the beginning, and of all cycles, over that of the cycles after the beginning
_SETTLED = 1.1  # ratio of the RMSE to that of the second half below which a run has settled


class Cause:
    """A possible cause of a bad score. Its sentence is made from small arrays, only when a warning needs it.

    Parameters
    ----------
    sentence : callable
        Makes a sentence from the evidence, or "" if this is not the cause.
    evidence : callable
        Returns the arguments of `sentence`: arrays or lazy arrays with the dims (trajectory, time).
    of_record : bool
        Whether the cause lies in the record alone, not in a run.
    """

    def __init__(
        self,
        sentence: Callable[..., str],
        evidence: Callable[[], Sequence[xr.DataArray]],
        *,
        of_record: bool = False,
    ) -> None:
        self.sentence, self.evidence, self.of_record = sentence, evidence, of_record
        self._lazy: da.Array | None = None

    def now(self) -> str:
        """The sentence, computed now."""
        return self.sentence(*(values.to_numpy() for values in self.evidence()))

    def later(self) -> da.Array:
        """The sentence as a lazy array without dims. All scores with this cause share the array.

        It is a dask array and no delayed object. So dask can share the inputs of the evidence with the scores, and a
        lazy run is computed once for all of them.
        """
        if self._lazy is None:
            arrays = [da.asarray(values.data).rechunk(-1) for values in self.evidence()]
            pairs: list[Any] = []
            for number, array in enumerate(arrays):
                pairs += [array, tuple(f"{number}-{axis}" for axis in range(array.ndim))]
            self._lazy = da.blockwise(
                _sentence, (), *pairs, of=self.sentence, concatenate=True, dtype=object, meta=np.empty((), dtype=object)
            )
        return self._lazy


def _sentence(*evidence: Array, of: Callable[..., str]) -> Array:
    """A sentence as an array without dims."""
    return np.array(of(*evidence), dtype=object)


def fills(values: xr.DataArray, name: str) -> Cause:
    """The cause that the leading part of a variable holds fill values, such as -999."""
    first = leading(values)
    return Cause(partial(fill_text, name=name), lambda: (first,), of_record=True)


@dataclass(frozen=True)
class Score:
    """A score with its name and units, and the causes that a warning may name.

    Attributes
    ----------
    value : xarray.DataArray
    long_name : str
    units : str or None
        None if the score is one of several fields without common units.
    causes : sequence of Cause
        Causes that a warning names if the score is broken.
    always : sequence of Cause
        Causes that a warning names even if the score is not broken.
    broken : xarray.DataArray of bool, optional
        Where the score is broken. By default where the score is not finite.
    trouble : str
        First words of the warning.
    comment : str
        What a user should know of the score; "" if nothing.
    """

    value: xr.DataArray
    long_name: str
    units: str | None
    causes: Sequence[Cause] = ()
    always: Sequence[Cause] = ()
    broken: xr.DataArray | None = None
    trouble: str = "scores are not finite"
    comment: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of the score as a variable."""
        attrs = {"long_name": self.long_name}
        attrs |= {} if self.units is None else {"units": self.units}
        return attrs | ({"comment": self.comment} if self.comment else {})

    def where_broken(self) -> xr.DataArray:
        """Where the score needs an explanation."""
        broken: xr.DataArray = ~xr.ufuncs.isfinite(self.value) if self.broken is None else self.broken
        return broken


def with_warnings(scores: Mapping[str, Score], of: str = "", *, again: bool = False) -> dict[str, xr.DataArray]:
    """Values of scores. Values in memory warn now, in one warning; lazy values warn when they are computed.

    Parameters
    ----------
    scores : mapping
    of : str
        First words of a warning, such as the name of the run.
    again : bool
        Whether scores of another run have already warned about the record.
    """
    if again:
        scores = {
            name: replace(score, always=[cause for cause in score.always if not cause.of_record])
            for name, score in scores.items()
        }
    in_memory = {name: score for name, score in scores.items() if score.value.chunks is None}
    broken = [name for name, score in in_memory.items() if bool(score.where_broken().any())]
    causes = dict.fromkeys(cause for name in broken for cause in in_memory[name].causes)
    always = dict.fromkeys(cause for score in in_memory.values() for cause in score.always)
    if broken:
        _tell(of + scores[broken[0]].trouble, broken, [cause.now() for cause in causes])
    warn_of(_headed("" if cause.of_record else of, cause.now()) for cause in always)
    return {name: score.value if name in in_memory else _watched(name, score, of) for name, score in scores.items()}


def _headed(of: str, text: str) -> str:
    """A sentence after its first words; "" if there is no sentence."""
    return text and of + text


def _watched(name: str, score: Score, of: str) -> xr.DataArray:
    """Make a lazy score whose blocks warn if they are broken."""
    data = da.map_blocks(
        _tell_block,
        score.value.data,
        score.where_broken().data,
        *(cause.later() for cause in (*score.causes, *score.always)),
        dtype=score.value.dtype,
        meta=np.empty((0,) * score.value.ndim, score.value.dtype),
        trouble=of + score.trouble,
        score=name,
        heads=["" if cause.of_record else of for cause in score.always],
    )
    return score.value.copy(data=data)


def _tell_block(
    value: Array, broken: Array, *sentences: Array, trouble: str, score: str, heads: Sequence[str]
) -> Array:
    """Warn about a block: the first sentences only if it is broken, the last ones, one for each head, always."""
    texts = [str(np.asarray(sentence).item()) for sentence in sentences]
    of_broken = len(texts) - len(heads)
    if broken.any():
        _tell(trouble, [score], texts[:of_broken])
    warn_of(_headed(head, text) for head, text in zip(heads, texts[of_broken:], strict=True))
    return value


def _tell(trouble: str, scores: Sequence[str], causes: Iterable[str]) -> None:
    sentences = list(dict.fromkeys(filter(None, causes)))
    if not sentences:
        trouble = trouble.replace("scores are", f"the scores {list(scores)} are")
        sentences = ["no cause is seen in the input; expected values whose squares are in the range of their dtype"]
    warn_of([f"{trouble}: {'; '.join(sentences)}"])


def _share(trajectories: Any) -> str:
    """Say how many trajectories are flagged, and which is the first."""
    count, total = int(trajectories.sum()), len(trajectories)
    return f"{count} of {total} trajectories ({count / total:.0%}, the first at position {int(trajectories.argmax())})"


def diverged(lost: Array) -> str:
    """Say which share of the trajectories diverged, and from which cycle on.

    Parameters
    ----------
    lost : array of bool, shape (trajectories, cycles)
        Whether the trajectory is lost, at every cycle of the record, also during burn-in.
    """
    if not lost.any():
        return ""
    return (
        f"{_share(lost.any(axis=1))} diverged, from cycle {int(lost.any(axis=0).argmax())} on, and a mean over them is "
        "no number; leave them out of record and run with .isel(trajectory=...)"
    )


def gaps(what: str, remedy: str) -> Callable[..., str]:
    """Make the function that writes the sentence about a variable that is not finite at some cycles.

    Parameters
    ----------
    what : str
        Beginning of the sentence, such as "the truth has gaps".
    remedy : str
        End of the sentence: what to do.
    """

    def sentence(broken: Array, lost: Array | None = None) -> str:
        # A trajectory that has diverged explains its gaps.
        unexplained = broken if lost is None else broken & ~lost
        if not unexplained.any():
            return ""
        cycles = unexplained.any(axis=0)
        return f"{what} in {_share(unexplained.any(axis=1))}, at {int(cycles.sum())} of {cycles.size} cycles; {remedy}"

    return sentence


def unobserved(observed: Array) -> str:
    """Say how many trajectories have no observation in the cycles that are scored.

    Parameters
    ----------
    observed : array of bool, shape (trajectories, cycles)
    """
    nothing = ~observed.any(axis=1)
    if not nothing.any():
        return ""
    return f"nothing is observed in {_share(nothing)}; expected a shorter burn_in, or another variable as observation="


def unsettled(rmse: Array, burn_in: int) -> str:
    """Say whether the RMSE of the beginning is far from the rest, and how many cycles to leave out then.

    Parameters
    ----------
    rmse : array, shape (trajectories, cycles)
        RMSE after burn-in. Trajectories that are not finite at all cycles are ignored.
    burn_in : int
        Number of cycles that are left out already.
    """
    rmse = rmse[
        :, : rmse.shape[1] - int(trailing(np.isnan(rmse).all(axis=0)).sum())
    ]  # a smoother has no states at the last times
    whole = rmse[np.isfinite(rmse).all(axis=1)].astype(np.float64)
    cycles = rmse.shape[1]
    if not len(whole) or cycles < _LEAST_CYCLES:
        return ""
    curve = whole.mean(axis=0)
    tenth = cycles // 10
    beginning, rest = curve[:tenth].mean(), curve[tenth:].mean()
    if not (beginning > _FAR * rest and curve.mean() > _MATTERS * rest):
        return ""
    # Means over a twentieth of the cycles: one cycle of one trajectory says little.
    width = cycles // 20
    means = np.convolve(curve, np.full(width, 1 / width), mode="valid")
    settled = np.flatnonzero(means <= _SETTLED * curve[cycles // 2 :].mean())
    longer = burn_in + (int(settled[0]) if settled.any() else tenth)
    return (
        f"the beginning is far from the rest: over the first {tenth} cycles that are scored the RMSE is "
        f"{beginning:.3g}, over the others {rest:.3g}; leave it out, for example with burn_in={longer}"
    )
