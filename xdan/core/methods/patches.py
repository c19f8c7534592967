"""Covariances of large states in patches: matrices of overlapping neighbourhoods instead of one N x N matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..roots import cholesky_or_nan, root_of
from .advancing import advance_along

_NEGATIVE = 0.02  # eigenvalues below minus this (in units of the observation error's) are removed from a covariance
_AT_ONCE = 4096  # number of components in one batch
MOST_SITES = 2000  # largest N of one matrix (N, N): beyond it, the matrices of 64 trajectories exceed a gibibyte


@dataclass(frozen=True)
class Patches:
    """Overlapping neighbourhoods that cover a state.

    Each component of the state belongs to the core of one patch. The halo of this patch holds all components within the
    radius of the core. A covariance is kept as one matrix for each patch, shape (B, T, W, W). If two components are
    within the radius of each other, the patches of both their cores hold their covariance; `agreed` makes the two
    copies equal. The method assumes that the tangent linear model reaches no farther than the radius. Unit
    perturbations at components more than two radii apart are then run together in one direction, so the number of
    directions does not grow with the state.

    `patches_of` of patch_cutting.py makes patches.

    Attributes
    ----------
    sites : Tensor of int64, shape (T, W)
        Components of each patch; on a ring all patches have them in the same order.
    inside : Tensor of bool, shape (T, W)
        False at places without a component, where a patch is smaller than the largest. There `sites` is 0.
    core : Tensor of int64, shape (N,)
        Place of each component in the core of its patch, in the flattened (T, W).
    near : Tensor of bool, shape (T, W, W)
        Pairs of components within the radius of each other.
    colours : Tensor of int64, shape (N,)
        Components of one colour are farther apart than twice the radius.
    partner : Tensor of int64, shape (T, W, W)
        Place of each pair in the patch of its first component's core, in the flattened (T, W, W). A pair farther apart
        than the radius has its present place.
    groups : Tensor of int64, shape (T,)
        Patches of one group are farther apart than the radius.
    radius : float
        Width of the halos.
    contiguous : bool
        Whether the components of each patch are consecutive on a ring.
    """

    sites: Tensor
    inside: Tensor
    core: Tensor
    near: Tensor
    colours: Tensor
    partner: Tensor
    groups: Tensor
    radius: float
    contiguous: bool

    def to(self, device: torch.device) -> Patches:
        """These patches on another device."""
        if self.sites.device == device:
            return self
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Patches(**moved, radius=self.radius, contiguous=self.contiguous)

    def of(self, values: Tensor) -> Tensor:
        """Values of the components (B, N) in each patch, shape (B, T, W); zero at places without a component."""
        return torch.where(self.inside, values[:, self.sites], 0.0)

    def cores(self, values: Tensor) -> Tensor:
        """Values of each component in the patch of its core, shape (B, N), from values (B, T, W)."""
        return values.flatten(1)[:, self.core]

    def diagonal(self, variance: Tensor) -> Tensor:
        """Covariance in patches of independent errors with these variances, (B, N)."""
        return torch.diag_embed(self.of(variance))

    def cut(self, matrix: Tensor) -> Tensor:
        """A covariance (N, N) in patches, (T, W, W)."""
        both = self.inside[:, :, None] & self.inside[:, None]
        return torch.where(both, matrix[self.sites[:, :, None], self.sites[:, None]], 0.0)

    def agreed(self, covariance: Tensor) -> Tensor:
        """Covariances (B, T, W, W) whose copies agree, for components within the radius of each other.

        Each patch neglects what lies outside it. The two copies of a covariance, in the patches of the two cores,
        therefore differ. Their mean is taken. The covariance need not be symmetric.
        """
        of_first, of_second = (
            matrices.flatten(1)[:, self.partner.flatten()].unflatten(1, self.partner.shape)
            for matrices in (covariance, covariance.mT)
        )
        both: Tensor = 0.5 * (of_first + of_second.mT)
        return both

    def tangent(self, dynamics: Dynamics, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Advance states (B, N); the tangent linear model between components of each patch is (B, T, W, W)."""
        count = int(self.colours.max()) + 1
        unit = torch.nn.functional.one_hot(self.colours, count).T.to(x)
        after, moved = advance_along(dynamics, x, unit.expand(len(x), *unit.shape), steps)
        rows, columns = self.sites[:, :, None], self.colours[self.sites][:, None, :]
        return after, moved[:, columns, rows] * self.near

    def analysed(self, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """P_a = (P^-1 + H^T R^-1 H)^-1 in each patch, by the observations inside it."""
        independent = check_observing(observing, "a covariance in patches")
        root = self.of(independent.whiten(covariance.new_ones(observed.shape), observed))  # root of diag(H^T R^-1 H)
        unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        covariance = _positive(covariance, unit, root)
        whole = unit + root[..., :, None] * covariance * root[..., None, :]
        factor = cholesky_or_nan(whole.flatten(0, 1)).unflatten(0, covariance.shape[:2])
        half = torch.linalg.solve_triangular(factor, root[..., :, None] * covariance, upper=False)
        return self.agreed(covariance - half.mT @ half)

    def bend(self, dynamics: Dynamics, covariance: Tensor) -> Tensor:
        """Second-order covariance of the tendency, for a model whose closed form holds on a part of a ring."""
        reach = dynamics.second_order_reach
        second = dynamics.second_order_tendency(covariance.flatten(0, 1))
        assert reach is not None
        assert second is not None
        whole = torch.zeros_like(second)
        inner = slice(reach, second.shape[-1] - reach)  # outside, the closed form took the part for a whole ring
        whole[:, inner, inner] = second[:, inner, inner]
        return self.agreed(whole.unflatten(0, covariance.shape[:2]))

    def bends(self, dynamics: Dynamics, covariance: Tensor) -> bool:
        """Whether `bend` works with this dynamics."""
        if not self.contiguous or dynamics.second_order_reach is None:
            return False
        return dynamics.second_order_tendency(covariance[:1, 0]) is not None

    def side_by_side(self, rows: Tensor) -> Tensor:
        """Rows of all patches, (B, T, K, W), as states (B, groups, K, N); a state holds the patches of one group."""
        states = rows.new_zeros(len(rows), int(self.groups.max()) + 1, rows.shape[2], len(self.core))
        patch, place = self.inside.nonzero(as_tuple=True)
        states[:, self.groups[patch], :, self.sites[patch, place]] = rows[:, patch, :, place]
        return states

    def apart(self, states: Tensor) -> Tensor:
        """Rows of each patch, (B, T, K, W), from states (B, groups, K, N): the inverse of `side_by_side`."""
        rows = states[:, self.groups[:, None], :, self.sites].movedim((0, 1), (1, 3))
        return torch.where(self.inside[:, None], rows, 0.0)

    def times(self, covariance: Tensor, vector: Tensor) -> Tensor:
        """P v of vectors (B, N)."""
        return self.cores((covariance @ self.of(vector)[..., None])[..., 0])

    def variances(self, covariance: Tensor) -> Tensor:
        """Diagonal of P, shape (B, N)."""
        return self.cores(covariance.diagonal(dim1=-2, dim2=-1))

    def pairs(self, companions: Tensor) -> Tensor:
        """Places of the covariances of each component with its companions, in the flattened (T, W, W) of its patch.

        Parameters
        ----------
        companions : Tensor of int64, shape (N, L)

        Raises
        ------
        ValueError
            If a companion is not in the patch of the component's core.
        """
        width, parts = self.sites.shape[1], []
        for some, core in zip(companions.split(_AT_ONCE), self.core.split(_AT_ONCE), strict=True):
            patch = core // width
            same = (self.sites[patch][:, None] == some[..., None]) & self.inside[patch][:, None]
            if not bool(same.any(-1).all()):
                raise ValueError(
                    f"the network reads covariances of a component with {companions.shape[1]} components around it, "
                    f"and some are farther away than radius={self.radius:g}, the halo of its patches: expected "
                    "a larger radius=, or fewer diagonals="
                )
            parts.append(core[:, None] * width + same.to(torch.int8).argmax(-1))
        return torch.cat(parts)


def _positive(covariance: Tensor, unit: Tensor, root: Tensor) -> Tensor:
    """Covariances without the negative eigenvalues that matter. The cut at the radius makes some eigenvalues negative.

    An update makes a negative eigenvalue more negative, which then takes variance from the components around.
    """
    white = root[..., :, None] * covariance * root[..., None, :]
    failed = torch.linalg.cholesky_ex(_NEGATIVE * unit + white)[1] > 0
    if not bool(failed.any()):
        return covariance
    rows = root_of(covariance[failed])
    return covariance.index_put(failed.nonzero(as_tuple=True), rows.mT @ rows)


def check_observing(observing: ObservingSystem, who: str) -> ObservingSystem:
    """Return the standard deviations of R. Refuse an operator and correlated errors, which patches cannot use.

    Raises
    ------
    ValueError
    """
    if not observing.direct:
        raise ValueError(
            f"{who} and observations of an operator: for a covariance in patches, expected observations of the sites; "
            "take 'letkf', whose observations have positions, or columns=, or for small states one matrix"
        )
    independent = observing.independent()
    if independent is None:
        raise ValueError(
            f"{who} and correlated observation errors: for a covariance in patches, expected a diagonal R; take "
            "'letkf', columns=, errors that are independent, or for small states one matrix"
        )
    return independent
