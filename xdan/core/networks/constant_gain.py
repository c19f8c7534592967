"""One gain for all times: the increment is a constant matrix times the projected innovation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import choice
from ..spaces import StateSpace
from .base import AnalysisNetwork
from .registry import register_network
from .sizes import odd, size

FORMS = ("kernel", "matrix", "symmetric")
_BEGINNING = 0.4  # diagonal of A at the start, in units of R


@register_network
class ConstantGain(AnalysisNetwork):
    """x_a = x_f + A zeta, zeta = H^T R^-1 (y - H(x_f)), with one matrix A for all times and states.

    The gain is K = A H^T R^-1. The steady gain of a Kalman filter has that form: there A = P_a, and A H^T R^-1 is the
    gain (Riccati's equation). Of a chaotic model the best A is that of a 3D-Var with the best constant B. Where a
    component is never observed, zeta is zero, and its column of A is not learned.

    Parameters
    ----------
    form : {"kernel", "matrix", "symmetric"}
        "kernel": A[i, j] = k(i - j) on a ring, for every length of it. "matrix": a free matrix of a state of fixed
        size. "symmetric": (W + W^T) / 2 of such a matrix W.
    width : int
        Odd number of sites that the kernel spans. Only of the kernel.
    sites : int
        N, components of the state. Only of the matrices, and where no space says it.
    space : StateSpace, or its JSON, optional
        The fields that it is for, whose components a matrix takes as they are packed; None for one field on a ring.

    Raises
    ------
    TypeError
        For sizes that are no integers, or a form that is no string.
    ValueError
        For an unknown form, sizes out of bounds, a width that is even, a kernel off the ring, or states of another
        size.

    References
    ----------
    Bach, Baptista, Sanz-Alonso and Stuart (2024), arXiv:2410.10523, Sect. 9.4.1 and 9.4.2, where a constant gain is
    learned from errors of the analysis.

    Examples
    --------
    >>> import torch, xdan
    >>> network = xdan.ConstantGain("kernel", width=5)
    >>> x, zeta = torch.zeros(1, 40), torch.randn(1, 40)
    >>> increment = network(x, zeta)[0] - x
    >>> turned = network(x, zeta.roll(3, -1))[0] - x
    >>> torch.allclose(increment.roll(3, -1), turned)
    True
    """

    name: ClassVar[str] = "constant-gain"

    def __init__(
        self,
        form: str = "kernel",
        width: int = 21,
        sites: int = 40,
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.form, self.width = choice("form", form, FORMS), odd("width", width)
        self.sites = size("sites", sites) if self.space is None else self.space.size
        if self.form == "kernel":
            if self.space is not None and not self.space.is_plain_ring:
                raise ValueError(
                    f"form='kernel' for the fields {self.space.names}: a kernel is for one field on a ring; expected "
                    "form='matrix' or form='symmetric'"
                )
            weights = torch.zeros(self.width, dtype=torch.float32)
            weights[self.width // 2] = _BEGINNING
        else:
            weights = _BEGINNING * torch.eye(self.sites, dtype=torch.float32)
        self.weights = nn.Parameter(weights)

    @property
    def reach(self) -> int | None:
        """Half of a kernel; all sites of a matrix."""
        return self.width // 2 if self.form == "kernel" and self._is_one_climate else None

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse a ring that is shorter than the kernel, and states of another size than the matrix's."""
        super().check_state(dims, shape)
        if self.form == "kernel" and shape[0] < self.width:
            raise ValueError(f"width={self.width}: the state has {shape[0]} sites; expected at least the width")
        if self.form != "kernel" and self.space is None and shape[0] != self.sites:
            raise ValueError(f"sites={self.sites}: the state has {shape[0]} sites; expected that number")

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis, shape of x (B, N); no memory."""
        error_std = self.per_component(self.error_std)
        matrix = self._matrix(x.shape[-1])
        # In units of the observation error: sigma zeta, and A / sigma^2.
        return x + self.conserving(error_std * ((self.conserving(zeta, adjoint=True) * error_std) @ matrix.T)), None

    def covariance(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """A as a matrix, in the state's units squared, the same for every state, shape (B, N, N)."""
        scale = self.per_component(self.error_std)
        answer = self._matrix(x.shape[-1]) * (scale**2 if scale.ndim == 0 else torch.outer(scale, scale))
        return self.conserving(self.conserving(answer).mT).mT.expand(len(x), -1, -1), memory

    def _matrix(self, sites: int) -> Tensor:
        """A in units of the observation error, (N, N)."""
        if self.form == "matrix":
            return self.weights
        if self.form == "symmetric":
            return 0.5 * (self.weights + self.weights.T)
        ring = torch.arange(sites, device=self.weights.device)
        offset = (ring[:, None] - ring + self.width // 2) % sites
        inside = offset < self.width
        return torch.where(inside, self.weights[offset.clamp_max(self.width - 1)], 0.0)
