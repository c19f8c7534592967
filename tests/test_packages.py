"""What is said of the package in several places is the same; scripts that build it know what it must hold."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import xdan

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "ci"))

import minimum  # noqa: E402
import package  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPE = yaml.safe_load((ROOT / "ci" / "conda" / "meta.yaml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
IN_CONDA = {"torch": ["pytorch"], "cf-xarray": ["cf_xarray"], "dask": ["dask-core", "distributed"]}
IN_CONDA |= {"matplotlib": ["matplotlib-base"]}


def in_conda(lines):
    """Requirements in conda's names: name to bounds."""
    wanted = {}
    for requirement in map(Requirement, lines):
        for name in IN_CONDA.get(requirement.name, [requirement.name]):
            wanted[name] = str(requirement.specifier)
    return wanted


def of_recipe(lines):
    return dict(line.split(" ") if " " in line else (line, "") for line in lines)


def test_conda_recipe_says_what_pyproject_says():
    project, requirements = PROJECT["project"], RECIPE["requirements"]
    python = {"python": project["requires-python"]}
    assert of_recipe(requirements["run"]) == python | in_conda(project["dependencies"])
    assert of_recipe(requirements["host"]) == python | {"pip": ""} | in_conda(PROJECT["build-system"]["requires"])
    optional = [line for extra in ("plots", "files", "statistics") for line in project["optional-dependencies"][extra]]
    assert of_recipe(requirements["run_constrained"]) == in_conda(optional)
    assert RECIPE["build"]["noarch"] == "python"
    assert RECIPE["package"] == {"name": project["name"], "version": xdan.__version__}
    assert RECIPE["about"]["summary"] == project["description"]
    assert RECIPE["about"]["license"] == project["license"]
    for module in RECIPE["test"]["imports"]:
        __import__(module)


def test_versions_that_are_tested_satisfy_the_bounds():
    tested = dict(line.split("==") for line in (ROOT / "ci" / "constraints.txt").read_text().split())
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(line for some in project["optional-dependencies"].values() for line in some)]
    wanted = [one for one in map(Requirement, lines) if one.name != "xdan"]
    assert wanted
    lacking = [str(one) for one in wanted if canonicalize_name(one.name) not in tested]
    assert not lacking
    assert all(tested[canonicalize_name(one.name)] in one.specifier for one in wanted)


def test_every_python_that_is_allowed_is_named():
    named = [re.findall(r":: (3\.\d+)$", line) for line in PROJECT["project"]["classifiers"]]
    versions = [version for some in named for version in some]
    assert versions == ["3.11", "3.12", "3.13"]
    assert all(version in SpecifierSet(PROJECT["project"]["requires-python"]) for version in versions)
    assert "3.10" not in SpecifierSet(PROJECT["project"]["requires-python"])


def test_minimum_takes_the_lower_bounds(tmp_path):
    bounds = minimum.lower_bounds()
    assert bounds["torch"] == "2.9"
    assert {"cf-xarray", "dask", "hvplot", "h5py", "scipy", "pytest"} <= set(bounds)
    assert "sphinx" not in bounds
    assert all((ROOT / test).exists() for test in minimum.TESTS)
    text = '[project]\ndependencies = ["a>=1", "B_c[x]>=2.1,<3"]\n[project.optional-dependencies]\n'
    text += "plots = ['d']\nfiles = []\nstatistics = ['a>={}']\ntest = ['xdan[plots]']\n"
    (tmp_path / "pyproject.toml").write_text(text.format(1))
    assert minimum.lower_bounds(tmp_path) == {"a": "1", "b-c": "2.1"}
    (tmp_path / "pyproject.toml").write_text(text.format(2))
    with pytest.raises(ValueError, match="a has the lower bounds 1 and 2: expected one"):
        minimum.lower_bounds(tmp_path)


def test_package_tells_what_is_lacking_and_what_is_foreign(monkeypatch):
    held = ["xdan/py.typed", "xdan/__init__.pyi", "xdan/accessor.pyi", "xdan/trained/lorenz96.zarr/zarr.json"]
    monkeypatch.setattr(package, "_tracked", lambda: [*held, "xdan/network.py", "tests/test_a.py", ".ci/run"])
    whole = [*held, "xdan/network.py", "xdan-1.dist-info/METADATA"]
    assert package.faults_of_wheel(whole) == []
    assert package.faults_of_wheel([*whole[1:], "tests/test_a.py"]) == [
        "the wheel lacks xdan/py.typed",
        "the wheel holds tests/",
    ]
    source = [f"xdan-1/{name}" for name in [*held, "xdan/network.py"]]
    assert package.faults_of_sdist(source) == ["the sdist lacks tests/test_a.py"]
    assert package.faults_of_sdist([*source, "xdan-1/tests/test_a.py"]) == []


def test_citation_names_the_version_and_every_paper():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["version"] == xdan.__version__
    assert CITATION["license"] == PROJECT["project"]["license"]
    assert {"type", "title", "authors"} <= set.intersection(*(set(one) for one in CITATION["references"]))
    assert all("year" in one or one["type"] == "unpublished" for one in CITATION["references"])
    cited = set(re.findall(r"doi\.org/([^)\s]+)", (ROOT / "docs" / "citing.md").read_text()))
    assert cited <= {one.get("doi") for one in CITATION["references"]}


def test_changelog_names_the_version():
    assert f"({xdan.__version__})" in (ROOT / "CHANGELOG.md").read_text()
