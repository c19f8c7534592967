"""Neighbours of each component: the components whose covariances with it a network reads or gives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spaces import Field, StateSpace


def companions(space: StateSpace, width: int) -> Tensor:
    """For each component, those whose covariance with it a network reads.

    On a grid these are the component and its neighbours along each dim, width // 2 on each side. Beyond an end, `pad`
    of the geometry gives the neighbours. Among components without places these are all of them. The same point of every
    other field on an equal geometry follows. Shorter rows are filled with the component itself.

    Parameters
    ----------
    space : StateSpace
    width : int
        An odd number of points: the component and its neighbours along one dim.

    Returns
    -------
    Tensor of int64, shape (N, L)

    Raises
    ------
    ValueError
        If `pad` of a geometry changes the values of points, so that neighbours cannot be recognised.
    """
    rows = [_of_field(space, field, width) for field in space]
    most = max(row.shape[1] for row in rows)
    filled = []
    for field, row in zip(space, rows, strict=True):
        components = torch.arange(space.slices[field.name].start, space.slices[field.name].stop)
        filled.append(torch.cat([row, components[:, None].expand(-1, most - row.shape[1])], 1))
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
    """Each point, and its neighbours along each dim in turn, as tensors in the field's shape."""
    dims, columns = points.ndim, []
    for dim in range(dims):
        widths = [half if k == dim and size > 1 else 0 for k, size in enumerate(points.shape)]
        padded = field.geometry.pad(points + 1, widths) - 1
        if not bool(torch.isin(padded, points).all()):
            raise ValueError(
                f"pad() of {field.geometry!r} changes the values of points beyond its ends, and a network beside a "
                "Kalman filter looks for neighbours there: expected a geometry that continues a field by the values "
                "of its points; or take diagonals=1"
            )
        for offset in range(2 * widths[dim] + 1):
            if offset != widths[dim] or dim == 0:  # add the point itself only once
                columns.append(padded.narrow(dim, offset, points.shape[dim]))
    return columns


def root_places(space: StateSpace | None, width: int, size: int) -> tuple[Tensor, Tensor]:
    """For each component, the columns of a sparse root of the covariance: itself, and then components near it.

    Parameters
    ----------
    space : StateSpace, or None
        None stands for a ring of `size` points.
    width : int
        An odd number: the component and width // 2 neighbours on each side, along each dim.
    size : int
        Number N of components.

    Returns
    -------
    places : Tensor of int64, shape (N, L)
        The component itself first. L depends on the space and the width alone.
    distinct : Tensor of bool, shape (N, L)
        False where the column occurs earlier in the row, as beyond an end and on short rings.
    """
    if space is None:
        half = torch.arange(1, width // 2 + 1)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.stack([half, -half], 1).flatten()])
        places = (torch.arange(size)[:, None] + offsets) % size
    else:
        near = companions(space, width)
        places = torch.cat([torch.arange(size)[:, None], near], 1)
    earlier = (places[:, :, None] == places[:, None, :]).tril(-1).any(-1)
    if space is not None:  # the companions contain the component itself: leave this column out
        order = earlier.to(torch.int64).argsort(dim=1, stable=True)
        most = int((~earlier).sum(1).max())
        places, earlier = (one.gather(1, order)[:, :most] for one in (places, earlier))
    return places, ~earlier
