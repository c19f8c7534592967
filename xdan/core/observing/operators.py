"""Observation operators H: a matrix, or a torch function whose derivatives autodiff takes."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from ..checks import integer, shown
from ..tangent import push_forward
from ..user_functions import isolated


class Operator(ABC):
    """An observation operator H, differentiable and batched over leading axes.

    A subclass may work in place, or return one of its buffers: states and observations are copied, with all leading
    axes as one. A class that does neither saves the copies if it says so: `class Mine(Operator, pure=True)`.

    Attributes
    ----------
    size : int
        Number P of observations that it gives.
    linear : bool
        Whether H x is a product with a matrix.
    moves : bool
        Whether it holds H for several times, which differ. Then states have the shape (..., K, N).

    Examples
    --------
    >>> import torch, xdan
    >>> class Sums(xdan.Operator):
    ...     "Sums of neighbours."
    ...     size, linear = 4, True
    ...     def __call__(self, x):
    ...         return x + x.roll(-1, -1)
    >>> Sums().adjoint(torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[1., 1., 0., 0.]])
    """

    size: int
    linear: bool = False
    moves: bool = False

    def __init_subclass__(cls, pure: bool = False, **options: Any) -> None:
        """Copy arguments and results of the class's methods, and drop inherited derivatives of another H."""
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            for follower in {"tangent", "adjoint", "linear", "as_matrix"} - set(vars(cls)):
                setattr(cls, follower, getattr(Operator, follower))
        guards: dict[str, Callable[..., Any]] = {"tangent": _guard_derivative, "adjoint": _guard_derivative}
        for name, guard in {"__call__": _guard_call, **guards}.items():
            method = None if pure else vars(cls).get(name)
            if inspect.isfunction(method) and not hasattr(method, "__wrapped__"):
                setattr(cls, name, guard(method))

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Observe states of shape (..., N); the result has shape (..., P)."""

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """Derivative of H at x (B, N) along directions (B, M, N), shape (B, M, P); by default, by forward autodiff."""
        return push_forward(self, x, directions.contiguous(), "the observation operator")[1]

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v at x (B, N), for v (B, P), shape (B, N); by default, by a vector-Jacobian product."""
        return vjp(self, x)[1](v)[0]  # type: ignore[no-any-return]

    def spread(self, x: Tensor, variance: Tensor, observed: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """H V H^T at x for a diagonal V, and the function s -> V H^T s; both are zero where nothing is observed.

        Parameters
        ----------
        x : Tensor, shape (B, N)
        variance : Tensor, broadcastable to (B, N)
        observed : Tensor of bool, shape (B, P)

        Returns
        -------
        Tensor, shape (B, P, P), and a function from (B, P, M) to (B, M, N)
        """
        size = x.shape[1]
        unit = torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
        slopes = self.tangent(x, unit) * observed[:, None]  # rows of H^T
        weighted = variance.expand(x.shape)[..., None] * slopes
        return slopes.mT @ weighted, lambda solved: (weighted @ solved).mT

    def picked(self, times: int | slice | Tensor, in_time: bool) -> Operator:
        """H at some times, at one time, or for a batch whose rows are at the times (B,). Itself if H is constant.

        Parameters
        ----------
        times : int, slice or Tensor of int64
            Positions of the times.
        in_time : bool
            Whether the result is for several times, and not for one time or for rows.
        """
        return self

    def repeat(self, count: int) -> Operator:
        """H for a batch whose rows are repeated, each `count` times in a row. Itself if all rows have one H."""
        return self

    @property
    def times(self) -> int | None:
        """Number of times for which it holds H; None if H is constant."""
        return None

    def kept(self, like: Tensor) -> list[Tensor]:
        """What of H differs in time, for observations (B, P) of one time: columns (B, P, k). `before` makes H of them.

        Empty if H is constant.
        """
        return []

    def before(self, kept: Tensor) -> Operator:
        """H of the time at which `kept` was called, from its columns side by side. Itself if H is constant."""
        return self

    def identity(self, states: Tensor) -> list[Tensor]:
        """Tensors that distinguish the operator from others; by default, its results for some states (S, N)."""
        return [self(states)]

    def as_matrix(self) -> Tensor | None:
        """H as a matrix (P, N), which a Dataset can hold; None if there is none."""
        return None


def _guard_call(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Copy the argument and the result of an operator's call."""

    @functools.wraps(method)
    def guarded(self: Operator, x: Tensor) -> Tensor:
        return isolated(functools.partial(method, self), x, 1, (self.size,), "the observation operator")

    return guarded


def _guard_derivative(method: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Copy the arguments and the result of an operator's derivative or adjoint."""

    @functools.wraps(method)
    def guarded(self: Operator, x: Tensor, vectors: Tensor) -> Tensor:
        return method(self, x.clone(), vectors.clone()).clone()

    return guarded


class LinearOperator(Operator, pure=True):
    """H x with a matrix of shape (P, N).

    Raises
    ------
    TypeError
        If the matrix is not a tensor of real numbers.
    ValueError
        If it is not a matrix of finite numbers.
    """

    linear = True

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor) or matrix.is_complex() or matrix.dtype == torch.bool:
            kind = matrix.dtype if isinstance(matrix, Tensor) else shown(matrix)
            raise TypeError(f"H is {kind}: expected a tensor of real numbers, shape (P, N)")
        if matrix.ndim != 2 or not len(matrix) or not bool(matrix.isfinite().all()):
            raise ValueError(f"H has shape {tuple(matrix.shape)}: expected a matrix (P, N) of finite numbers")
        self.matrix, self.size = matrix, len(matrix)

    def __call__(self, x: Tensor) -> Tensor:
        """H x."""
        return x @ self.matrix.to(x).T

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """H times the directions."""
        return self(directions)

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v."""
        return v @ self.matrix.to(v)

    def as_matrix(self) -> Tensor:
        """H."""
        return self.matrix


class FunctionOperator(Operator, pure=True):
    """A torch function that maps states (B, N) to observations (B, P). It gets copies.

    Parameters
    ----------
    function : callable
    size : int
        Number P of observations.

    Raises
    ------
    TypeError
        If `function` is not a function, or `size` not an integer.
    ValueError
        If the size is below 1.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], size: int) -> None:
        if not callable(function):
            raise TypeError(f"function={shown(function)}: expected a torch function of states")
        self.function, self.size = function, integer("size", size, least=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function.

        Raises
        ------
        ValueError
            If the function cannot take the states, or does not return a tensor with `size` observations for each state.
        """
        return isolated(self.function, x, 1, (self.size,), "the observation operator")
