"""Eigendecompositions in single precision that do not converge are made in double precision."""

import pytest
import torch
from torch.testing import assert_close

from xdan.core.eigen import eigh
from xdan.core.ensemble_space import Precision


@pytest.fixture
def stubborn(monkeypatch):
    """A decomposition that fails in single precision, as that of some processors does for rare matrices."""
    decompose = torch.linalg.eigh

    def fails(matrices):
        if matrices.dtype == torch.float32:
            raise torch.linalg.LinAlgError("linalg.eigh: (Batch element 2): The algorithm failed to converge")
        return decompose(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", fails)


def test_single_precision_falls_back_on_double(stubborn):
    s = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    values, vectors = eigh(s @ s.mT)
    assert values.dtype == vectors.dtype == torch.float32
    assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, s @ s.mT, rtol=1e-4, atol=1e-4)


def test_analyses_go_on(stubborn):
    s = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    innovation = torch.ones(3, 8)
    weights, _ = Precision(s, innovation).solve(4.0)
    expected = torch.linalg.solve(s @ s.mT + 4 * torch.eye(5), s @ innovation[..., None])[..., 0]
    assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_double_precision_says_what_failed(monkeypatch):
    def fails(matrices):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(torch.linalg.LinAlgError, match="did not converge"):
        eigh(torch.eye(2, dtype=torch.float64))
