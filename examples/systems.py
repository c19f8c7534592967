"""Systems beyond the papers' Lorenz-96: each figure by one command.

    python examples/systems.py SYSTEM FIGURE [--minutes 0] [--out systems]

    kuramoto-sivashinsky         table, anatomy, transfer (to a ring of twice the length)
    kuramoto-sivashinsky-sparse  table (every eighth point observed)
    lorenz96-sparse              table (every fourth site observed, every 0.15)
    sphere                       table, anatomy, transfer (from T21 to T42)
    sphere-quarter               table (every fourth meridian observed)
    sphere-radiosondes           table (200 places on two continents observed)
    lorenz63                     ball: directions in which errors grow, and the directions in a network's P_a
    lorenz96                     seasonal, two-halves: a forcing that changes in time, or from site to site

By default the networks come with xdan. With --minutes, each network is trained for so long. `lorenz63` and `lorenz96`
always train their networks, for 5 and 10 minutes by default. Results are saved under --out, in a folder for the system
and the figure: a second call computes only what is missing. docs/systems.md shows the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import heterogeneous
import lorenz63_ball
from system_figures import DISSECTED, LARGER, anatomy, table, transfer
from system_networks import SYSTEMS

Figure = Callable[[argparse.Namespace], None]
TRAINING = {"lorenz63": 5.0, "lorenz96": 10.0}  # minutes, for systems whose networks do not come with xdan


def figures() -> dict[str, dict[str, Figure]]:
    """Every figure of every system."""
    made: dict[str, dict[str, Figure]] = {name: {"table": partial(table, name)} for name in SYSTEMS}
    for name in DISSECTED:
        made[name]["anatomy"] = partial(anatomy, name)
    for name in LARGER:
        made[name]["transfer"] = partial(transfer, name)
    return made | {"lorenz63": lorenz63_ball.FIGURES, "lorenz96": heterogeneous.FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = figures()
    parser.add_argument("system", choices=known)
    parser.add_argument("figure", choices=sorted({figure for those in known.values() for figure in those}))
    parser.add_argument("--minutes", type=float, help="training time of each network")
    parser.add_argument("--cycles", type=int, help="cycles of the test record after the burn-in")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--seed", type=int, help="seed of the test record")
    parser.add_argument("--only", nargs="*", help="rows of a table whose names contain one of these words")
    parser.add_argument("--out", type=Path, default=Path("systems"))
    options = parser.parse_args()
    if options.figure not in known[options.system]:
        parser.error(f"{options.system} has the figures {sorted(known[options.system])}, not {options.figure!r}")
    if options.minutes is None:
        options.minutes = TRAINING.get(options.system, 0.0)
    options.out = options.out / options.system / options.figure
    options.out.mkdir(parents=True, exist_ok=True)
    known[options.system][options.figure](options)


if __name__ == "__main__":
    main()
