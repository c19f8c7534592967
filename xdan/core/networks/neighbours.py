"""Which components of a state a network is told the covariances with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spaces import Field, StateSpace


def companions(space: StateSpace, width: int) -> Tensor:
    """For each component, those whose covariance with it a network sees.

    On a grid itself and its neighbours along each dim, half of the width to each side, as the geometry continues it
    beyond its ends; of points without neighbours all of them. Then, of other fields on the same geometry, the same
    point. Rows that have fewer than the longest repeat the component.

    Parameters
    ----------
    space : StateSpace
    width : int
        Odd.

    Returns
    -------
    Tensor of int64, shape (N, L)
    """
    rows = [_of_field(space, field, width) for field in space]
    most = max(row.shape[1] for row in rows)
    filled = []
    for field, row in zip(space, rows, strict=True):
        own = torch.arange(space.slices[field.name].start, space.slices[field.name].stop)
        filled.append(torch.cat([row, own[:, None].expand(-1, most - row.shape[1])], 1))
    return torch.cat(filled)


def _of_field(space: StateSpace, field: Field, width: int) -> Tensor:
    """Companions of the components of one field, (points, L)."""
    geometry, start = field.geometry, space.slices[field.name].start
    points = torch.arange(geometry.size, dtype=torch.float64)
    if geometry.sites == (1,):
        near = points.expand(geometry.size, -1)
    else:
        near = torch.stack(_along_dims(field, points.reshape(geometry.shape), width // 2), -1).flatten(0, -2)
    beside = [
        points + space.slices[other.name].start - start
        for other in space
        if other.name != field.name and other.geometry == geometry
    ]
    numbers: Tensor = torch.cat([near, *(one[:, None] for one in beside)], 1) + start
    return numbers.to(torch.int64)


def _along_dims(field: Field, points: Tensor, half: int) -> list[Tensor]:
    """Each point and its neighbours along each dim in turn, tensors of the field's shape."""
    dims, columns = points.ndim, []
    for dim in range(dims):
        widths = [half if k == dim and size > 1 else 0 for k, size in enumerate(points.shape)]
        padded = field.geometry.pad(points, widths)
        for offset in range(2 * widths[dim] + 1):
            if offset != widths[dim] or dim == 0:  # the point itself once
                columns.append(padded.narrow(dim, offset, points.shape[dim]))
    return columns
