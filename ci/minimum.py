"""Runs a part of the tests with the oldest versions that pyproject.toml allows.

python ci/minimum.py FOLDER [--only-constraints] [--python PYTHON] [TESTS ...]

FOLDER receives the constraints (`minimum.txt`), an environment (`environment/`), and nothing else. A requirement
"name>=1.2" becomes "name==1.2"; what has no lower bound, and what the requirements bring, is the newest that fits. An
environment that is there already is used again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("plots", "files", "statistics", "test")  # what runs beside the package; the others only check or build
# Each wing, each extra and each kind of store, in some minutes.
TESTS = (
    "tests/test_import.py",
    "tests/test_without_extras.py",
    "tests/test_network.py",
    "tests/records/test_blocks.py",
    "tests/records/test_checkpoint.py",
    "tests/records/test_fields.py",
    "tests/records/test_streams.py",
    "tests/records/test_times.py",
    "tests/assimilation/test_run_layout.py",
    "tests/core/test_core_gradient.py",
    "tests/core/test_core_networks.py",
    "tests/core/test_core_tangent.py",
    "tests/plots/test_plotting.py",
    "tests/plots/test_saving.py",
    "tests/sweeps/test_scaling_law.py",
)


def lower_bounds(root: Path = ROOT) -> dict[str, str]:
    """Lower bound of each requirement of the package and of its extras.

    Parameters
    ----------
    root : path
        Folder of pyproject.toml.

    Returns
    -------
    dict of str to str
        Versions by normalised names; a requirement without a lower bound is not in it.

    Raises
    ------
    ValueError
        If a name has two lower bounds.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    bounds: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        for bound in (one.version for one in requirement.specifier if one.operator == ">="):
            if bounds.setdefault(name, bound) != bound:
                raise ValueError(f"{name} has the lower bounds {bounds[name]} and {bound}: expected one")
    return bounds


def main() -> None:
    """Write the constraints, make the environment and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only-constraints", action="store_true", help="write minimum.txt and end")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("tests", nargs="*", default=TESTS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    constraints = asked.folder.resolve() / "minimum.txt"
    constraints.write_text("".join(f"{name}=={bound}\n" for name, bound in sorted(lower_bounds().items())))
    print(constraints.read_text(), end="", flush=True)
    if asked.only_constraints:
        return
    environment = asked.folder.resolve() / "environment"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([asked.python, "-m", "venv", environment], check=True)
    install = [python, "-m", "pip", "install", "-q", "-c", constraints, "-e", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    # What old libraries say of one another is no fault of xdan's.
    warnings = ["-o", "filterwarnings=default\nerror::xdan.XdanWarning"]
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, *asked.tests]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    sys.exit(subprocess.run(tests, cwd=ROOT, env=surroundings, check=False).returncode)


if __name__ == "__main__":
    main()
