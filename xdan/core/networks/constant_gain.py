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
_BEGINNING = 0.4  # first value of the diagonal of A, in units of R


@register_network
class ConstantGain(AnalysisNetwork):
    """x_a = x_f + A zeta, zeta = H^T R^-1 (y - H(x_f)), with one matrix A for all times and states.

    The gain is K = A H^T R^-1. The steady gain of a Kalman filter has this form, with A = P_a (Riccati's equation). For
    a chaotic model, the best A is that of a 3D-Var with the best constant B. If a component is never observed, its zeta
    is zero, and its column of A is not learned.

    Parameters
    ----------
    form : {"kernel", "matrix", "symmetric"}
        "kernel": A[i, j] = k(i - j) on a ring of any length. "matrix": a free matrix, for states of fixed size.
        "symmetric": (W + W^T) / 2 with such a matrix W.
    width : int
        For the kernel: the odd number of sites that it spans.
    sites : int
        For the matrices: number N of components of the state. A space, if there is one, gives N.
    space : StateSpace, or its JSON, optional
        The fields that the gain is for. A matrix takes their components in the packed order. By default one field on a
        ring.

    Raises
    ------
    TypeError
        If a size is not an integer, or the form is not a string.
    ValueError
        If a form is unknown, a size is out of bounds, the width is even, a kernel is not on a ring, or the states have
        another size.

    References
    ----------
    Bach, Baptista, Sanz-Alonso and Stuart (2024), arXiv:2410.10523, Sect. 9.4.1 and 9.4.2: a constant gain that is
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
        """Half of the kernel's width; None for a matrix, which reaches all sites."""
        return self.width // 2 if self.form == "kernel" and self._is_one_climate else None

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse a ring that is shorter than the kernel, and states that do not have the matrix's size."""
        super().check_state(dims, shape)
        if self.form == "kernel" and shape[0] < self.width:
            raise ValueError(f"width={self.width}: the state has {shape[0]} sites; expected at least the width")
        if self.form != "kernel" and self.space is None and shape[0] != self.sites:
            raise ValueError(f"sites={self.sites}: the state has {shape[0]} sites; expected that number")

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis, shape of x (B, N); no memory."""
        error_std = self.per_component(self.error_std)
        matrix = self._matrix(x.shape[-1])
        # In units of the observation error: zeta becomes sigma zeta, and A becomes A / sigma^2.
        return x + self.conserving(error_std * ((self.conserving(zeta, adjoint=True) * error_std) @ matrix.T)), None

    def covariance(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """A as a matrix, in the state's units squared, shape (B, N, N). It is the same for every state."""
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
