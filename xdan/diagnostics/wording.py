"""Parts that the docstrings of diagnostics share."""

from __future__ import annotations

from ..core.shared_docs import shares
from ..records.wording import PARAGRAPHS

shares_points = shares(
    {
        **PARAGRAPHS,
        "points": """\
ds : xarray.Dataset
    Twin or record. The network is studied at the states of its truth, or at the forecasts of `run`.
network : Network
    The trained network.""",
        "run": """\
run : xarray.Dataset, optional
    Run of `cycle(network)`. Its forecasts are the points at which the network is studied. By default the points are the
    truth's states. If the network has a memory, or carries a covariance beside a Kalman filter, the run must hold it:
    make the run by `cycle(network, members=True)`. Memory and covariance are kept fixed. At the truth's states the
    memory is empty, and there is no carried covariance. A covariance that the network rebuilds from the state (`past`)
    changes with the state.""",
        "innovation": """\
innovation : {"zero", "sampled", "run"}
    The zeta at which exact derivatives are taken: 0 (Gamma-bar, Eq. 11), a random zeta for every state (Gamma-tilde,
    Eq. 14), or the zeta of the run (Gamma-hat, Eq. D2).""",
        "forecast_error": """\
forecast_error : float or array, shape (N, N), optional
    Standard deviation or covariance P_f of forecast errors, in the state's units. Samples of zeta then have the
    covariance H^T R^-1 (R + H P_f H^T) R^-1 H. By default their covariance is H^T R^-1 H (App. H).""",
        "every": """\
every : int
    Step in time: 1 takes every time, 2 takes every second time, and so on.""",
        "burn_in": """\
burn_in : int
    Number of times to leave out at the beginning.""",
    }
)
