"""Smoothers, learned parts of filters, networks with a spread, forecasts and filters: each figure by one command.

    python examples/methods.py TOPIC FIGURE [--out methods]

`python examples/methods.py TOPIC --help` lists the figures of a topic. Results are saved under --out, in a folder for
the topic and the figure: a second call computes only what is missing. docs/methods.md has the table of all figures.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

TOPICS = {
    "smoothers": "states that later observations correct, too",
    "learned": "the gain, the inflation or the localisation of a filter, learned",
    "probabilistic": "networks that give a distribution",
    "forecasts": "forecasts from analyses, by their lead time",
    "filters": "a comparison of classical filters",
    "scores": "whether ensembles know their errors",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", choices=TOPICS, help="; ".join(f"{name}: {words}" for name, words in TOPICS.items()))
    topic = next((word for word in sys.argv[1:] if word in TOPICS), None)
    figures = {} if topic is None else import_module(f"methods_{topic}").FIGURES
    parser.add_argument("figure", choices=figures or None)
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="training time of each network that is not saved yet"
    )
    parser.add_argument("--cycles", type=int, help="cycles of the test record after the burn-in")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--seed", type=int, help="seed of the test record")
    parser.add_argument("--out", type=Path, default=Path("methods"))
    options = parser.parse_args()
    options.out = options.out / options.topic / options.figure
    options.out.mkdir(parents=True, exist_ok=True)
    figures[options.figure](options)


if __name__ == "__main__":
    main()
