"""What the docstrings of diagnostics share."""

from __future__ import annotations

from ..core.shared_docs import shares
from ..records.wording import PARAGRAPHS

shares_points = shares(
    {
        **PARAGRAPHS,
        "points": """\
ds : xarray.Dataset
    Twin or record. The network is looked at in the states of its truth, unless a run is passed.
network : Network
    The trained network.""",
        "run": """\
run : xarray.Dataset, optional
    Of `cycle(network)`; its forecasts are the points. It must hold the memory of a network that has one, and the
    covariance that a network beside a Kalman filter carries, `cycle(network, members=True)`: both are held fixed.
    At the truth's states memory is taken as empty, and there is no such covariance; one that the network rebuilds
    from the state (`past`) moves with the state.""",
        "innovation": """\
innovation : {"zero", "sampled", "run"}
    Where in zeta the exact derivatives are taken: at 0 (Gamma-bar, Eq. 11), at a draw for every state
    (Gamma-tilde, Eq. 14), at the run's own (Gamma-hat, Eq. D2).""",
        "forecast_error": """\
forecast_error : float or array, shape (N, N), optional
    Deviation or covariance P_f of forecast errors: samples then have the covariance H^T R^-1 (R + H P_f H^T) R^-1
    H, without it H^T R^-1 H (App. H).""",
        "every": """\
every : int
    Take every so many-th time.""",
        "burn_in": """\
burn_in : int
    Leading times to leave out.""",
    }
)
