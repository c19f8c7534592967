"""A control: observations of a truth that the model makes, at the places and times of a record's observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import torch
import xarray as xr
from torch import Tensor

from ..core.dynamics import Dynamics
from ..core.observing import ObservingSystem
from ..core.random import Purpose, normal
from ..core.truth_model import TruthModel
from ..core.twin import check_truth
from ..records.blocks import Plan, block, block_graph
from ..records.fields import split_tensor
from ..records.record import LabelledRecord
from ..records.schema import TIME, TRAJECTORY, TRUTH

_GOLDEN = 0x9E3779B9  # distance of the seeds of two controls, so that no two controls share a truth


def control_record(ds: xr.Dataset, labelled: LabelledRecord, number: int, seed: int) -> xr.Dataset:
    """Observations that the record would hold if the model were perfect.

    The truth starts from the model's climatology. If the model has model errors, an error is added in every interval.
    The record's H and R observe this truth at the places and times of the record's observations.

    Parameters
    ----------
    ds : xarray.Dataset
        The record. Its truth is not in the result.
    labelled : LabelledRecord
        The record as it was read with the model.
    number : int
        Number of the control. Each control has another truth.
    seed : int

    Returns
    -------
    xarray.Dataset
        Observations with the names and dims of the record's; lazy if the record is lazy.
    """
    observation = labelled.observation.transpose(TRAJECTORY, TIME, ...)
    data = observation.chunk().data if observation.chunks is None else observation.data
    setup, parts = labelled.setup, labelled.observed_parts
    outputs = {part.name("observation"): (part.shape, setup.dtype) for part in parts}
    shared = [dask.delayed(one, traverse=False) for one in (setup.dynamics, setup.observing, setup.steps, parts)]
    keys = (seed + _GOLDEN * number) % (1 << 32)
    arrays = block_graph(
        _control_block,
        Plan.from_chunks(*data.chunks[:2]),
        [data],
        outputs,
        *(*shared, setup.trajectory.tolist(), keys),
        carries=True,
        dtype=setup.dtype,
    )
    if not labelled.lazy:
        arrays = dict(zip(arrays, dask.compute(*arrays.values()), strict=True))
    made = {}
    for name, part in zip(labelled.observed, parts, strict=True):
        old = ds[name]
        dims = (TRAJECTORY, TIME, *part.dims)
        new = xr.DataArray(arrays[part.name("observation")], dims=dims, attrs=old.attrs)
        labels = {dim: labelled.labels[dim] for dim in dims if dim in labelled.labels and dim in old.coords}
        labelled_new = new.assign_coords(labels)
        # Values are assigned by labels, as the record may have its places in another order.
        made[name] = (labelled_new.isel({TRAJECTORY: 0}, drop=True) if labelled.bare else labelled_new).transpose(
            *old.dims
        )
    truths = [str(name) for name, one in ds.data_vars.items() if one.attrs.get("xdan_role") == TRUTH.name]
    return ds.drop_vars({*truths, *({TRUTH.name} & set(map(str, ds.data_vars)))}).assign(made)


@block
def _control_block(
    data: Sequence[Tensor],
    carry: dict[str, Tensor] | None,
    rows: slice,
    columns: slice,
    dynamics: Dynamics,
    observing: ObservingSystem,
    steps: Tensor,
    parts: Any,
    labels: Sequence[int],
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make the observations of a block. The carry is the last state of the truth."""
    (there,) = data
    trajectory, time = torch.tensor(labels[rows]), torch.arange(columns.start, columns.stop)
    like = torch.zeros((), dtype=there.dtype)
    clock = int(steps[: columns.start].sum())
    states: list[Tensor] = []
    model = TruthModel.of(None, dynamics)
    x = model.start(trajectory, seed, like) if carry is None else carry["x"]
    for k, step in zip(time.tolist(), steps[columns].tolist(), strict=True):
        x = model.advanced(x, step, clock, trajectory, k, seed)
        clock += step
        states.append(x)
    truth = torch.stack(states, 1)
    check_truth(dynamics, truth, trajectory, columns.start)
    system = observing.during(columns).to(like.dtype, "cpu")
    noise = normal(seed, Purpose.OBSERVATION_ERROR, trajectory, time, there.flatten(2).shape[-1])
    observation = system.observe(truth) + system.errors_from(noise.to(truth))
    observation = torch.where(there.flatten(2).isnan(), torch.nan, observation)
    return split_tensor(observation, parts, "observation"), {"x": x}
