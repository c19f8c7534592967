"""The GPU script in miniature, on the CPU."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

import xdan

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_all_parts_run_and_a_network_is_left(tmp_path, monkeypatch, capfd):
    for folder in (ROOT / "ci" / "bench", ROOT / "ci"):
        monkeypatch.syspath_prepend(folder)
    script = import_module("gpu")
    sizes = {"minutes": 0.02, "batches": 2, "seconds": 0.01, "batch": 2, "window": 2}
    small = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    small += ["--networks", "plain", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *small])
    monkeypatch.setattr(script, "METHODS", {name: script.METHODS[name] for name in ("ThreeDVar", "ETKF")})
    monkeypatch.setattr(script, "SMOOTHED", ("ETKF",))
    script.main()
    printed = capfd.readouterr().out
    assert "FAILED" not in printed
    assert printed.count("0.0e+00") == 2 + 1 + 11 + 11  # methods, smoothed, networks, graphs
    assert xdan.open_network(tmp_path / "plain.zarr").description["training"]["device"] == "cpu"
    assert (tmp_path / "plain.tar").exists()
