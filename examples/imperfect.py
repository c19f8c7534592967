"""Models that are wrong, a figure by one command.

    python examples/imperfect.py FIGURE [--out imperfect]

    em, desroziers, lag-innovations   Q and R from a record (imperfect_errors.py)
    forcing, coefficients             parameters from a record (imperfect_parameters.py)
    correction, two-scale             a wrong model, corrected from increments (imperfect_models.py)
    surrogate                         a network as the model (imperfect_models.py)
    control-variates, multifidelity   a few members of a costly model beside many of a cheap one
    multi-model                       several wrong models in one ensemble (imperfect_fidelities.py)
    networks-forcing, networks-noise  networks trained where the model is wrong (imperfect_networks.py)

What is made is kept under --out, in a folder of the figure: a second call makes what is missing. The pages
docs/model-error.md, docs/parameters.md, docs/corrections.md and docs/fidelities.md show the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imperfect_errors
import imperfect_fidelities
import imperfect_models
import imperfect_networks
import imperfect_parameters

FIGURES = {
    **imperfect_errors.FIGURES,
    **imperfect_parameters.FIGURES,
    **imperfect_models.FIGURES,
    **imperfect_fidelities.FIGURES,
    **imperfect_networks.FIGURES,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--minutes", type=float, default=0.0, help="training time of each network of networks-*")
    parser.add_argument("--cycles", type=int, help="of the test record")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--seed", type=int, help="of the test record")
    parser.add_argument("--out", type=Path, default=Path("imperfect"))
    options = parser.parse_args()
    options.out = options.out / options.figure
    options.out.mkdir(parents=True, exist_ok=True)
    FIGURES[options.figure](options)


if __name__ == "__main__":
    main()
