"""Spherical harmonics on a Gaussian grid: closed forms, transforms there and back, a library's transforms."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from torch.testing import assert_close

from xdan.core.dynamics.spherical_harmonics import SphericalHarmonics, Workspace, legendre_functions, multiplier

GRIDS = [(21, 32, 64), (42, 64, 128)]


def coefficients(of, count=3):
    """Random coefficients of harmonics that there are."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(of.order), of.degree.shape[1], count, generator=generator, dtype=torch.float64)
    return torch.where(of.values.square().sum(1)[..., None] > 0, drawn, 0.0)


@pytest.mark.parametrize(("degree", "order"), [(1, 0), (1, 1), (5, 3), (21, 0), (21, 21), (42, 17), (42, 42)])
def test_legendre_functions_are_those_of_scipy(degree, order):
    """Its harmonics have the norm 1 and a sign (-1)^m; ours the norm 4 pi, and the cosine and sine of m apart."""
    sine = np.polynomial.legendre.leggauss(64)[0]
    values, _ = legendre_functions(42, sine)
    known = sph_harm_y(degree, order, np.arccos(sine), 0.0).real * np.sqrt(4 * np.pi) * (-1) ** order
    np.testing.assert_allclose(values[order, :, degree], known * (np.sqrt(2) if order else 1.0), rtol=0, atol=1e-12)


def test_slopes_are_derivatives():
    sine, h = np.linspace(-0.95, 0.95, 9), 1e-6
    ahead, behind = (legendre_functions(21, sine + s * h)[0] for s in (1, -1))
    slopes = (1 - sine**2)[:, None] * (ahead - behind) / (2 * h)
    np.testing.assert_allclose(legendre_functions(21, sine)[1], slopes, rtol=0, atol=1e-7)


@pytest.mark.parametrize("grid", GRIDS)
def test_fields_of_harmonics_come_back(grid):
    of = SphericalHarmonics(*grid)
    drawn = coefficients(of)
    assert int((drawn[..., 0] != 0).sum()) == (grid[0] + 1) ** 2 - 1  # all of degree 1 to T
    fields = of.to_fields(drawn)
    assert fields.shape == (3, *grid[1:])
    assert_close(of.to_coefficients(fields), drawn, rtol=0, atol=1e-10)
    weights = of.pair_share[:, None] / 2  # of a point
    assert_close((fields.square() * weights).sum((1, 2)), drawn.square().sum((0, 1)))  # the norm


@pytest.mark.parametrize("grid", GRIDS)
def test_fields_of_coefficients_are_those_of_a_library(grid):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyshtools = pytest.importorskip("pyshtools")
    truncation, rows, columns = grid
    of = SphericalHarmonics(*grid)
    drawn = coefficients(of, 1)
    theirs = np.zeros((2, truncation + 1, truncation + 1))
    for row in range(len(of.order)):
        order = int(of.order[row])
        if order <= truncation:
            theirs[row % 2, 1:, order] = drawn[row, :, 0]
    latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(rows)[0]))
    places = np.meshgrid(latitude, np.arange(columns) * 360.0 / columns, indexing="ij")
    known = pyshtools.SHCoeffs.from_array(theirs).expand(lat=places[0], lon=places[1])
    assert_close(of.to_fields(drawn)[0], torch.from_numpy(known), rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS)
def test_products_have_exact_coefficients(grid):
    """The coefficients of a product are those that a much finer grid gives."""
    truncation, rows, columns = grid
    coarse, fine = SphericalHarmonics(*grid), SphericalHarmonics(truncation, 2 * rows, 2 * columns)
    one, other = coefficients(coarse, 2).unbind(-1)
    product, exact = (
        of.to_coefficients(of.to_fields(one[..., None]) * of.to_fields(other[..., None])) for of in (coarse, fine)
    )
    assert_close(product, exact, rtol=0, atol=1e-11 * float(exact.abs().max()))


def test_halves_multiply_as_fields_do():
    of = SphericalHarmonics(*GRIDS[0])
    one, other = torch.randn(2, 3, *GRIDS[0][1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(of.from_halves(of.to_halves(one)), one)
    times = multiplier(of.to_halves(other), Workspace(other))
    assert_close(of.from_halves(times("product", of.to_halves(one))), one * other)
