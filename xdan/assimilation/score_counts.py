"""Parts of all verdicts on ensembles: records with a truth, counts with warnings, results of several runs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import xarray as xr

from ..records.record import RecordWords
from ..records.schema import TIME
from .score_causes import Score, with_warnings
from .score_fields import FIELD
from .score_many import joined, several
from .score_pair import Pair, match, read_scored

NOT_COUNTED = "some states are not counted"
Run = xr.Dataset | Mapping[str, xr.Dataset]


def called(name: str) -> str:
    """A run in words, by its name; a single run has the name ""."""
    return f"run {name!r}" if name else "run"


def pairs(ds: xr.Dataset, run: Run, burn_in: int, which: str, words: RecordWords, purpose: str) -> dict[str, Pair]:
    """Match a record that has a truth with every run.

    Raises
    ------
    TypeError, ValueError
        If record or run cannot be read, do not fit each other, or the record has no truth.
    """
    runs = several("run", run)
    record = read_scored(ds, burn_in, words)
    if record.labelled.truth is None:
        raise ValueError(f"{purpose} needs the truth, which the record lacks: expected a variable 'truth'")
    return {name: match(record, one, which, what=called(name)) for name, one in runs.items()}


def together(made: Mapping[str, xr.Dataset], run: Run) -> xr.Dataset:
    """Join the results of several runs along `method`; a single result stays as it is."""
    return made[""] if isinstance(run, xr.Dataset) else joined(made)


def counted(
    pair: Pair, value: xr.DataArray, count: xr.DataArray, dims: Sequence[Hashable], long_name: str, read: Sequence[str]
) -> Score:
    """A score of counts. It is broken if some states are not counted."""
    sizes = xr.DataArray([part.size for part in pair.means.parts], dims=FIELD)
    everything = pair.cases(dims) * (sizes if pair.means.several else sizes[0])
    missing = count < everything * (1 - 1e-9) - 0.5
    if pair.left_out is not None and TIME in count.dims:
        missing = missing & ~pair.left_out
    causes = (pair.diverged, pair.record.gaps_of_truth, *map(pair.gaps_of, read))
    broken = missing.broadcast_like(value).transpose(*value.dims)
    return Score(value, long_name, "1", causes, pair.record.of_truth, broken, NOT_COUNTED)


def told(scores: Mapping[str, Score], pair: Pair, name: str, *, again: bool) -> xr.Dataset:
    """Scores as a Dataset, after their warnings."""
    values = with_warnings(scores, f"{called(name)}: " if name else "", again=again)
    result = xr.Dataset({key: value.drop_attrs() for key, value in values.items()})
    for key, one in scores.items():
        result[key].attrs = one.attrs
    return result.assign_coords(pair.means.labels) if FIELD in result.dims else result
