"""The package without its extras: the verbs of the first pages run, and the rest names the extra."""

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ci" / "core_verbs.py"
sys.path.insert(0, str(SCRIPT.parent))

from core_verbs import EXTRAS  # noqa: E402

BESIDE = {"plots": {"bokeh", "holoviews"}}  # what hvplot and panel bring, and xdan imports


def test_the_verbs_run_without_extras():
    said = subprocess.run([sys.executable, SCRIPT, "--block"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith("runs the verbs, and names the extras of the rest\n")


def test_every_package_of_an_extra_is_blocked():
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), set()).add(module)
    for extra, blocked in EXTRAS.items():
        wanted = {canonicalize_name(Requirement(line).name) for line in optional[extra]}
        assert all(set(blocked) & modules[name] for name in wanted)
        assert set(blocked) <= BESIDE.get(extra, set()) | {module for name in wanted for module in modules[name]}
    assert set(optional) - set(EXTRAS) == {"all", "docs", "test", "dev"}
