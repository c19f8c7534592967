"""Observation operators H: a matrix, or a torch function with its derivatives by autodiff."""

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

    A subclass may work in place or return a buffer of its own: states and observations are copied, with leading axes
    as one. A class that does neither says so, `class Mine(Operator, pure=True)`, and saves the copies.

    Attributes
    ----------
    size : int
        Observations that it gives, P.
    linear : bool
        Whether H x is a product with a matrix.
    moves : bool
        Whether it holds H of several times, which differ; then states have the shape (..., K, N).

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
        """Put copies around what the class defines, and drop what it inherits for another H."""
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
        """Observe states of shape (..., N), shape (..., P)."""

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """Derivative of H at x (B, N) along directions (B, M, N), shape (B, M, P); here by forward-mode autodiff."""
        return push_forward(self, x, directions.contiguous(), "the observation operator")[1]

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v at x (B, N), for v (B, P), shape (B, N); here by a vector-Jacobian product."""
        return vjp(self, x)[1](v)[0]  # type: ignore[no-any-return]

    def spread(self, x: Tensor, variance: Tensor, observed: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """H V H^T of a diagonal V at x, and the function s -> V H^T s; zero where not observed.

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
        """H of some of the times, of one, or of a batch whose rows are at the times (B,); itself where it stays.

        Parameters
        ----------
        times : int, slice or Tensor of int64
            Positions of the times.
        in_time : bool
            Whether the result is of times, and not of one or of rows.
        """
        return self

    def repeat(self, count: int) -> Operator:
        """H of a batch whose rows are repeated, each `count` times side by side; itself where rows have one H."""
        return self

    @property
    def times(self) -> int | None:
        """How many times it holds H of; None where H stays."""
        return None

    def kept(self, like: Tensor) -> list[Tensor]:
        """What differs in time of H, for observations (B, P) of one time: columns (B, P, k), of which `before` makes H.

        None of it where H stays.
        """
        return []

    def before(self, kept: Tensor) -> Operator:
        """H of the time that `kept` was called at, of its columns side by side; itself where H stays."""
        return self

    def identity(self, states: Tensor) -> list[Tensor]:
        """Tensors by which the operator is known from others: here what it makes of some states (S, N)."""
        return [self(states)]

    def as_matrix(self) -> Tensor | None:
        """H as a matrix (P, N), which a Dataset can hold; None where there is none."""
        return None


def _guard_call(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Put copies around an operator's call."""

    @functools.wraps(method)
    def guarded(self: Operator, x: Tensor) -> Tensor:
        return isolated(functools.partial(method, self), x, 1, (self.size,), "the observation operator")

    return guarded


def _guard_derivative(method: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Put copies around an operator's derivative or adjoint."""

    @functools.wraps(method)
    def guarded(self: Operator, x: Tensor, vectors: Tensor) -> Tensor:
        return method(self, x.clone(), vectors.clone()).clone()

    return guarded


class LinearOperator(Operator, pure=True):
    """H x with a matrix of shape (P, N).

    Raises
    ------
    TypeError
        If it is no tensor of real numbers.
    ValueError
        If it is no matrix of finite numbers.
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
        """H itself."""
        return self(directions)

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v."""
        return v @ self.matrix.to(v)

    def as_matrix(self) -> Tensor:
        """H."""
        return self.matrix


class FunctionOperator(Operator, pure=True):
    """A torch function of states (B, N) that gives observations (B, P), called on copies.

    Parameters
    ----------
    function : callable
    size : int
        P.

    Raises
    ------
    TypeError
        For another type.
    ValueError
        For a size below 1.
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
            If it cannot take the states, or gives anything but a tensor of `size` observations for each.
        """
        return isolated(self.function, x, 1, (self.size,), "the observation operator")
