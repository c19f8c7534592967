"""The analyses of an LETKF at all sites as dense tensors, with derivatives for the tapers and the inflation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..eigen import eigh
from ..ensemble_space import InverseRoot

PriorWeight = Callable[[Tensor, Tensor], Tensor]
"""Weight of the prior (...) from the eigenvalues of S S^T and from S d in the basis of eigenvectors, (..., K) each."""


def local_transforms(
    anomalies: Tensor, s: Tensor, innovation: Tensor, taper: Tensor, zeta: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Increment of the mean and transformed anomalies, w = P^-1 S d and X (M - 1)^1/2 P^-1/2, P = zeta I + S S^T.

    At site n, S has the whitened anomalies as rows; its columns are multiplied by the roots of the tapers. The smaller
    of S S^T and S^T S is decomposed. Its gradient is that of `InverseRoot` alone.

    Parameters
    ----------
    anomalies : Tensor, shape (B, M, n)
        Anomalies X of some sites.
    s : Tensor, shape (B, M, P)
        Whitened anomalies of the members in observation space.
    innovation : Tensor, shape (B, P)
        Whitened innovation d.
    taper : Tensor, shape (n, P) or (B, n, P); (1, P) for one transform of all sites
    zeta : callable
        A `PriorWeight`. It returns the shape (B, n), or (B, 1).

    Returns
    -------
    increment : Tensor, shape (B, n)
    transformed : Tensor, shape (B, M, n)
    """
    small = s.shape[2] < s.shape[1]
    return (_by_observations if small else _by_members)(anomalies, s, innovation, taper, zeta)


def _by_members(
    anomalies: Tensor, s: Tensor, innovation: Tensor, taper: Tensor, zeta: PriorWeight
) -> tuple[Tensor, Tensor]:
    b, m = s.shape[:2]
    batched = taper if taper.ndim == 3 else taper.expand(b, *taper.shape)
    products = (s[:, :, None] * s[:, None]).flatten(1, 2).mT  # (B, P, M M)
    gram = (batched @ products).unflatten(2, (m, m))
    projected = batched @ (s * innovation[:, None]).mT  # (B, n, M)
    values, vectors = _decomposed(gram)
    weight = zeta(values, (vectors.mT @ projected.detach()[..., None])[..., 0])
    root = _inverse_root(gram, weight, values, vectors)
    weights = (root @ (root @ projected[..., None]))[..., 0]
    each = anomalies.mT[:, :, None]  # (B, n, 1, M)
    if root.shape[1] == 1:
        increment = (weights @ anomalies)[:, 0]
        return increment, math.sqrt(m - 1) * (root[:, 0] @ anomalies)
    increment = (each @ weights[..., None])[..., 0, 0]
    return increment, math.sqrt(m - 1) * (each @ root)[:, :, 0].mT


def _by_observations(
    anomalies: Tensor, s: Tensor, innovation: Tensor, taper: Tensor, zeta: PriorWeight
) -> tuple[Tensor, Tensor]:
    """By A = zeta I + S^T S: P^-1 S = S A^-1, P^-1/2 = zeta^-1/2 I - S f S^T, f (zeta A)^1/2 (A^1/2 + zeta^1/2) = I."""
    b, m, p = s.shape
    root_taper = taper.sqrt()
    root_taper = root_taper if taper.ndim == 3 else root_taper.expand(b, *taper.shape)
    gram = (s.mT @ s)[:, None] * root_taper[..., :, None] * root_taper[..., None, :]
    local = root_taper * innovation[:, None]  # (B, n, P)
    values, vectors = _decomposed(gram)
    rotated = values.sqrt() * (vectors.mT @ local.detach()[..., None])[..., 0]
    weight = zeta(values, rotated)
    root = _inverse_root(gram, weight, values, vectors)
    # X S of each site, (B, n, P), or of one transform for all sites, (B, N, P).
    along = (anomalies.mT @ s) * root_taper
    solved = (root @ (root @ local[..., None]))[..., 0]
    increment = (along * solved).sum(-1)
    shift = weight.sqrt()[..., None, None]
    unit = torch.eye(p, dtype=s.dtype, device=s.device)
    f = root @ root @ torch.linalg.inv(unit + shift * root) / shift
    back = (f @ along[..., None])[..., 0] * root_taper
    transformed = anomalies / weight.sqrt()[:, None] - s @ back.mT
    return increment, math.sqrt(m - 1) * transformed


def _decomposed(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and vectors. A lost trajectory does not stop the others."""
    with torch.no_grad():
        fine = gram.isfinite().flatten(2).all(-1)[..., None, None]
        values, vectors = eigh(torch.where(fine, gram, 0.0))
        return values.clamp_min(0.0), torch.where(fine, vectors, torch.nan)


def _inverse_root(gram: Tensor, weight: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """(zeta I + gram)^-1/2."""
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    shifted = gram + weight[..., None, None] * unit
    root: Tensor = InverseRoot.apply(shifted, values + weight.detach()[..., None], vectors)  # type: ignore[no-untyped-call]
    return root
