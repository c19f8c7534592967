"""Observation operators H: a matrix, or a torch function with its derivatives by autodiff."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor
from torch.func import vjp

from .tangent import push_forward


class Operator(ABC):
    """An observation operator H, differentiable and batched over leading axes.

    Attributes
    ----------
    size : int
        Observations that it gives, P.
    linear : bool
        Whether H x is a product with a matrix.
    """

    size: int
    linear: bool = False

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Observe states of shape (..., N), shape (..., P)."""

    def along(self, x: Tensor, directions: Tensor) -> Tensor:
        """Derivative of H at x (B, N) along directions (B, M, N), shape (B, M, P); here by forward-mode autodiff."""
        return push_forward(self, x, directions.contiguous(), "the observation operator")[1]

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v at x (B, N), for v (B, P), shape (B, N); here by a vector-Jacobian product."""
        return vjp(self, x)[1](v)[0]  # type: ignore[no-any-return]


class LinearOperator(Operator):
    """H x with a matrix of shape (P, N).

    Raises
    ------
    ValueError
        If it is no matrix of finite numbers.
    """

    linear = True

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or not bool(matrix.isfinite().all()):
            raise ValueError(f"H has shape {tuple(matrix.shape)}: expected a matrix (P, N) of finite numbers")
        self.matrix, self.size = matrix, len(matrix)

    def __call__(self, x: Tensor) -> Tensor:
        """H x."""
        return x @ self.matrix.to(x).T

    def along(self, x: Tensor, directions: Tensor) -> Tensor:
        """H itself."""
        return self(directions)

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v."""
        return v @ self.matrix.to(v)


class FunctionOperator(Operator):
    """A torch function of states (..., N) that gives observations (..., P).

    Parameters
    ----------
    function : callable
    size : int
        P.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], size: int) -> None:
        if size < 1:
            raise ValueError(f"size={size}: expected at least 1 observation")
        self.function, self.size = function, int(size)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function.

        Raises
        ------
        ValueError
            If it gives another number of observations.
        """
        answer = self.function(x)
        if not isinstance(answer, Tensor):
            raise ValueError(f"the observation operator gave a {type(answer).__name__}: expected a tensor")
        if answer.shape != (*x.shape[:-1], self.size):
            raise ValueError(
                f"the observation operator gave shape {tuple(answer.shape)} for states {tuple(x.shape)}: expected "
                f"{(*x.shape[:-1], self.size)}; it must act on the last axis, and on any leading ones alike"
            )
        return answer
