"""Run DAPPER in its environment, with one process on each core."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = Path(__file__).with_name(".venv-dapper")


def arguments(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark against DAPPER."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs, ours and DAPPER's in turn")
    return parser


def python() -> str:
    """Interpreter of DAPPER's environment, made at the first call."""
    interpreter = ENVIRONMENT / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-q", "dapper==1.7.1"], check=True)
    return str(interpreter)


def rates(name: str, *sizes: int, processes: int = 1) -> list[float]:
    """Rates that some simultaneous processes of DAPPER print, one thread each."""
    script = str(Path(__file__).with_name("dapper_peer.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    running = [
        subprocess.Popen(
            [python(), script, name, *map(str, sizes)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        for _ in range(processes)
    ]
    return [json.loads(p.communicate()[0].strip().splitlines()[-1])["rate"] for p in running]


def report(name: str, ours: list[float], theirs: list[float], unit: str, target: float) -> None:
    """Print medians, and the ratio pair by pair."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    middle = len(ratios) // 2
    print(f"{name}: ours {sorted(ours)[middle]:,.0f}, peer {sorted(theirs)[middle]:,.0f} {unit}")
    print(f"  ratio {ratios[middle]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs), target {target}")
