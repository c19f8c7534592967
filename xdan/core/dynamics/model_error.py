"""The covariance Q of a model's error in one interval between analyses."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from ..checks import real_array, shown
from ..eigen import eigh
from ..observing import is_symmetric

if TYPE_CHECKING:
    from ..spaces import Geometry
    from .base import Dynamics

_NEGATIVE = 1e-6  # relative to the largest eigenvalue: less negative eigenvalues are rounding of single precision
_LARGEST = 1e30  # largest standard deviation, so that its square is finite in single precision


class ModelError:
    """Gaussian errors of a model, x_{k+1} = M(x_k) + e_k with e_k ~ N(0, Q), independent from interval to interval.

    Q belongs to one interval between analyses, whatever its length. It is positive semi-definite.

    Parameters
    ----------
    dynamics : Dynamics
        The model with these errors.
    std : float, array of shape (*state), or mapping of fields' names to these, optional
        Standard deviations, in the state's units. Fields that a mapping leaves out have no error. A labelled array has
        the dims of the state, in any order.
    covariance : array, shape (N, N), optional
        Q of the flattened state, instead of `std`. If the state has one field, also (*state, *state).

    Attributes
    ----------
    std : Tensor of float64, shape (N,)
        Standard deviation of each component.
    covariance : Tensor of float64, shape (N, N), or None
        None if errors of different components are independent.
    word : str or float
        Entry in descriptions: one number, or the number of values and their digest.

    Raises
    ------
    TypeError
        If an argument is not made of real numbers.
    ValueError
        If not exactly one of `std` and `covariance` is given, the shape is wrong, values are negative or not finite, or
        a covariance is not symmetric and positive semi-definite.

    References
    ----------
    Jazwinski (1970), Stochastic Processes and Filtering Theory, Sect. 7.2.
    """

    def __init__(self, dynamics: Dynamics, *, std: Any = None, covariance: Any = None) -> None:
        if (std is None) == (covariance is None):
            raise ValueError("expected exactly one of model_error_std= and model_error_covariance=")
        self.covariance: Tensor | None = None
        self._root: Tensor | None = None
        if std is not None:
            self.std = torch.from_numpy(_deviations(dynamics, std))
        else:
            matrix = _matrix(dynamics, covariance)
            self.std, self._root = matrix.diagonal().sqrt(), _root(matrix)
            self.covariance = matrix
        values = self.std if self.covariance is None else self.covariance
        alike = self.covariance is None and bool((values == values[0]).all())
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
        self.word: float | str = float(values[0]) if alike else f"{tuple(values.shape)} values, sha256 {digest}"
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    @property
    def independent(self) -> bool:
        """Whether errors of different components are independent: Q is diagonal."""
        return self.covariance is None

    def deviations(self, like: Tensor) -> Tensor:
        """Standard deviations, shape (N,), in the dtype and on the device of a tensor."""
        return self._as("std", self.std, like)

    def matrix(self, like: Tensor) -> Tensor:
        """Q, shape (N, N), in the dtype and on the device of a tensor."""
        if self.covariance is not None:
            return self._as("covariance", self.covariance, like)
        return self.deviations(like).square().diag()

    def root(self, like: Tensor) -> Tensor:
        """A matrix A, shape (N, N), with A A^T = Q. Columns of zero eigenvalues are zero."""
        return self.deviations(like).diag() if self._root is None else self._as("root", self._root, like)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Errors (..., N) from standard normal numbers (..., N)."""
        if self._root is None:
            return noise * self.deviations(noise)
        errors: Tensor = noise @ self.root(noise).mT
        return errors

    def added_to(self, covariance: Tensor) -> Tensor:
        """P + Q for covariances (..., N, N)."""
        if self._root is not None:
            return covariance + self.matrix(covariance)
        return covariance + self.deviations(covariance).square().diag_embed()

    def _as(self, name: str, value: Tensor, like: Tensor) -> Tensor:
        """A tensor in another's dtype, on its device. It is kept, because every cycle of a forecast needs it."""
        key = (name, like.dtype, like.device)
        if key not in self._held:
            self._held[key] = value.to(like)
        return self._held[key]


class MayErr:
    """A model that may have a known error with covariance Q in every interval.

    Attributes
    ----------
    model_error : ModelError or None
    """

    model_error: ModelError | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""

    @abstractmethod
    def _copied(self, **changed: Any) -> Self:
        """A copy with other attributes."""

    def with_model_error(self, std: Any = None, covariance: Any = None) -> Self:
        """Return a copy with a known error: in every interval between analyses it is wrong by e ~ N(0, Q).

        `advance` does not change. Twins add e to their truth, and methods that can use Q do so.

        Parameters
        ----------
        std : float, array of shape (*state), or mapping of fields' names to these, optional
            Standard deviations. 0 everywhere gives a perfect model.
        covariance : array, shape (N, N), optional
            Full Q, instead of `std`. Without either argument, the copy is a perfect model.

        Raises
        ------
        TypeError
            If an argument is not made of real numbers.
        ValueError
            If both are given, the shape is wrong, values are negative or not finite, or a covariance is not positive
            semi-definite.

        Examples
        --------
        >>> from xdan import Lorenz96
        >>> Lorenz96(sites=4).with_model_error(0.1).model_error.matrix(torch.zeros(())).diagonal()
        tensor([0.0100, 0.0100, 0.0100, 0.0100])
        """
        error = (
            None
            if std is None and covariance is None
            else ModelError(cast("Dynamics", self), std=std, covariance=covariance)
        )
        perfect = error is None or not bool(error.std.any())
        return self._copied(model_error=None if perfect else error)

    def with_error_of(self, other: Dynamics) -> Self:
        """Return a copy with the `model_error` of another model.

        Raises
        ------
        ValueError
            If the error differs between components, and the two models' states have different shapes.
        """
        error = other.model_error
        if error is None or self.shape == other.shape:
            return self._copied(model_error=error)
        if not isinstance(error.word, float):
            raise ValueError(
                f"the model errors of {other.label!r} are for states of shape {other.shape}: expected those of a state "
                f"of shape {self.shape}, or one standard deviation for all components"
            )
        return self.with_model_error(error.word)


def _deviations(dynamics: Dynamics, std: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Standard deviations of the packed state, (N,)."""
    space = dynamics.space
    if isinstance(std, Mapping) and not hasattr(std, "dims"):
        if (unknown := [name for name in std if name not in space.names]) or not std:
            raise ValueError(
                f"model_error_std= names {shown(unknown)}: expected fields of the state, some of {space.names}"
            )
        parts = [
            _at_points(f"model_error_std[{field.name!r}]", std.get(field.name, 0.0), field.geometry) for field in space
        ]
        values = np.concatenate(parts)
    else:
        values = _at_points("model_error_std", std, dynamics)
    wrong = values[~((values >= 0) & (values <= _LARGEST))]  # NaN too
    if wrong.size:
        raise ValueError(
            f"the model error has the standard deviation {wrong[0]:g}: expected finite values, at least 0, in the "
            "state's units"
        )
    return values


def _at_points(label: str, std: Any, grid: Dynamics | Geometry) -> Any:
    """A number for all components, or one for each; flattened."""
    shape, dims = grid.shape, grid.dims
    if hasattr(std, "dims"):
        if set(std.dims) - set(dims):
            raise ValueError(f"{label} has the dims {tuple(std.dims)}: expected some of {dims}, those of the state")
        for dim in std.dims:
            _check_order(label, std, dim, grid.coordinates[dim].values)
        std = std.expand_dims([dim for dim in dims if dim not in std.dims]).transpose(*dims) if std.ndim else std
    numbers = real_array(label, std, finite=False)
    try:
        return np.broadcast_to(numbers, shape).reshape(-1).copy()
    except ValueError:
        raise ValueError(
            f"{label} has shape {numbers.shape}: expected one number, or {shape}, one for every component of the state"
        ) from None


def _check_order(label: str, values: Any, dim: str, places: Any) -> None:
    """Refuse labels that are the model's labels in another order."""
    if dim not in values.coords:
        return
    labels, expected = list(values[dim].values), list(places)
    if labels != expected and set(labels) == set(expected):
        raise ValueError(
            f"{label} has the labels of {dim!r} in another order than the model: {labels[:4]}..., expected "
            f"{expected[:4]}..."
        )


def _matrix(dynamics: Dynamics, covariance: Any) -> Tensor:
    """Q as a matrix (N, N), before its eigenvalues are checked. A labelled Q has the dims of the state twice."""
    size = int(np.prod(dynamics.shape))
    if hasattr(covariance, "dims"):
        duals = {f"{dim}_dual": dim for dim in dynamics.dims}
        if set(covariance.dims) != {*dynamics.dims, *duals}:
            raise ValueError(
                f"model_error_covariance has the dims {tuple(covariance.dims)}: expected {(*dynamics.dims, *duals)}, "
                "those of the state twice"
            )
        for name in covariance.dims:
            dim = duals.get(name, name)
            _check_order("model_error_covariance", covariance, name, dynamics.coordinates[dim].values)
        covariance = covariance.transpose(*dynamics.dims, *duals)
    numbers = real_array("model_error_covariance", covariance, finite=False)
    if numbers.shape == (*dynamics.shape, *dynamics.shape):
        numbers = numbers.reshape(size, size)
    if numbers.shape != (size, size):
        raise ValueError(
            f"model_error_covariance has shape {numbers.shape}: expected ({size}, {size}), Q of the {size} components "
            f"of a state of {dynamics.label!r}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError("model_error_covariance holds values that are not finite: expected a covariance matrix")
    matrix = torch.from_numpy(numbers)
    if not is_symmetric(matrix):
        raise ValueError("model_error_covariance is not symmetric: expected a covariance matrix")
    return 0.5 * (matrix + matrix.T)


def _root(matrix: Tensor) -> Tensor:
    """Columns of the eigenvectors, each times the root of its eigenvalue."""
    values, vectors = eigh(matrix)
    largest = float(values[-1])
    if float(values[0]) < -_NEGATIVE * max(largest, 0.0) or largest < 0:
        raise ValueError(
            f"model_error_covariance has the eigenvalue {float(values[0]):.3g}: expected a positive semi-definite "
            "matrix, as no variance is negative"
        )
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root
