"""RMSE on records of DAPPER: one truth and one set of observations for its methods and those of xdan.

    python ci/bench/same_record.py [--cycles 1300] [--records 4]

Scores differ more between records than between methods. On one record, methods can be compared. Both forms of the
finite-size prior, with and without the cap, are those of xdan.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import peer

import xdan

OURS = {
    "ETKF, inflation 1.01": [("etkf", {"inflation": 1.01})],
    "EnKF-N": [("enkf-n", {"capped": False}), ("enkf-n", {})],
    "IEnKF-N": [("ienkf-n", {"capped": False}), ("ienkf-n", {})],
    "IEnKS-N, lag 5": [("ienks-n", {"lag": 5, "capped": False}), ("ienks-n", {"lag": 5})],
    "IEnKS-N, lag 10": [("ienks-n", {"lag": 10, "capped": False}), ("ienks-n", {"lag": 10})],
}
FIRST_SEED, BURN_IN = 3000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1300)
    parser.add_argument("--records", type=int, default=4)
    options = parser.parse_args()
    seeds = [str(FIRST_SEED + index) for index in range(options.records)]
    script = str(Path(__file__).with_name("dapper_peer.py"))
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(
            [peer.python(), script, "scores", folder, str(options.cycles), *seeds],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            check=True,
            text=True,
        )
        theirs = json.loads(answer.stdout.strip().splitlines()[-1])
        with np.load(Path(folder) / "records.npz") as stored:
            records = {name: stored[name].astype("f4") for name in ("truth", "observation")}
    twin = xdan.twin(xdan.Lorenz96(), cycles=options.cycles, trajectories=options.records, seed=0).compute()
    twin = twin.assign({name: twin[name].copy(data=values) for name, values in records.items()})
    print(f"{options.records} records of {options.cycles} cycles, {BURN_IN} of burn-in; 40 members; mean analysis RMSE")
    for title, variants in OURS.items():
        print(f"{title:22s} DAPPER {np.mean(theirs[title]):.4f}", end="")
        for name, parameters in variants:
            run = twin.dan.baseline(name, members=40, **parameters)
            rmse = float(twin.dan.score(run, burn_in=BURN_IN).rmse)
            form = "" if len(variants) == 1 else " uncapped" if parameters.get("capped") is False else " capped"
            print(f"   ours{form} {rmse:.4f}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
