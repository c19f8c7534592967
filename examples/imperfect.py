"""Wrong models: each figure by one command.

    python examples/imperfect.py TOPIC FIGURE [--out imperfect]

    errors      em, desroziers, lag-innovations            Q and R from a record
    parameters  forcing, coefficients                      parameters from a record
    models      correction, two-scale, surrogate           corrections from increments; a network as the model
    fidelities  control-variates, multifidelity, multi-model   several models in one ensemble
    networks    forcing, noise                             networks trained where the model is wrong

Results are saved under --out, in a folder for the topic and the figure: a second call computes only what is missing.
The pages docs/model-error.md, docs/parameters.md, docs/corrections.md and docs/fidelities.md show the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imperfect_errors
import imperfect_fidelities
import imperfect_models
import imperfect_networks
import imperfect_parameters

TOPICS = {
    "errors": imperfect_errors.FIGURES,
    "parameters": imperfect_parameters.FIGURES,
    "models": imperfect_models.FIGURES,
    "fidelities": imperfect_fidelities.FIGURES,
    "networks": imperfect_networks.FIGURES,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", choices=TOPICS)
    parser.add_argument("figure", choices=[figure for figures in TOPICS.values() for figure in figures])
    parser.add_argument("--minutes", type=float, default=0.0, help="training time of each network of `networks`")
    parser.add_argument("--cycles", type=int, help="cycles of the test record")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--seed", type=int, help="seed of the test record")
    parser.add_argument("--out", type=Path, default=Path("imperfect"))
    options = parser.parse_args()
    figures = TOPICS[options.topic]
    if options.figure not in figures:
        parser.error(f"{options.topic} has the figures {list(figures)}, not {options.figure!r}")
    options.out = options.out / options.topic / options.figure
    options.out.mkdir(parents=True, exist_ok=True)
    figures[options.figure](options)


if __name__ == "__main__":
    main()
