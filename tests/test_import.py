"""What `import xdan` loads, and which module may import which."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import xdan

ROOT = Path(xdan.__file__).parent
FLOORS = 10  # above the wall
MODULES = {
    ".".join(("xdan", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def in_new_process(code):
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def test_import_is_light():
    loaded = in_new_process("import json, sys, xdan; print(json.dumps(sorted(sys.modules)))")
    heavy = {"torch", "dask.distributed", "distributed", "hvplot", "panel", "holoviews", "bokeh", "scipy", "zarr"}
    assert heavy.isdisjoint(loaded)
    assert "xdan.accessor" in loaded


def test_accessor_is_registered_by_the_import():
    code = "import json, xdan, xarray as xr; print(json.dumps(hasattr(xr.Dataset(), 'dan')))"
    assert in_new_process(code) is True


@pytest.mark.parametrize("name", xdan.__all__)
def test_public_name_resolves(name):
    value = getattr(xdan, name)
    assert name in dir(xdan)
    assert name == "__version__" or value.__name__ == name
    assert name == "__version__" or value.__doc__


def test_unknown_name_says_which_are_known():
    with pytest.raises(AttributeError, match=r"no attribute 'kalman', perhaps 'KalmanCNN'; it has .*'baseline'"):
        _ = xdan.kalman


def type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def nodes(tree):
    """All nodes of a module but those that only a type checker sees."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not type_checking(child)]


def imported(module):
    """Full names that a module imports anywhere in it, functions included."""
    path = MODULES[module]
    if module == "xdan.accessor":  # it imports the verbs of its list
        path = path.with_suffix(".pyi")
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{start}.{alias.name}"
                yield inner if inner in MODULES else start


@pytest.fixture(scope="module")
def graph():
    imports = {module: {name for name in imported(module) if name in MODULES} - {module} for module in MODULES}
    assert "xdan.assimilation.cycling" in imports["xdan.assimilation.baselines"]  # the walk does find imports
    assert "xdan.training.fitting" in imports["xdan.accessor"]
    return imports


def test_no_import_cycle(graph):
    """Imports inside functions count: they only hide a cycle."""
    TopologicalSorter(graph).prepare()


# What each wing may import beside itself; what stands above is for no one to import.
BELOW = {
    "core": (),
    "records": ("core",),
    "network": ("core", "records"),
    "assimilation": ("core", "records", "network"),
    "training": ("core", "records", "network"),
    "diagnostics": ("core", "records", "network"),
    "estimation": ("core", "records", "network", "assimilation"),
    "sweeps": ("core", "records", "network", "assimilation", "training"),
    "plots": ("core", "records", "network", "assimilation"),
}


def wing(module):
    return ".".join(module.split(".")[1:2])


def test_wings_import_downward(graph):
    upward = {
        (module, name)
        for module, names in graph.items()
        if wing(module) in BELOW
        for name in names
        if wing(name) not in ("", wing(module), *BELOW[wing(module)])
    }
    assert not upward
    assert {wing(module) for module in MODULES} - set(BELOW) == {"", "accessor", "store", "training_loop"}


def test_the_house_has_few_floors(graph):
    """Longest way down from the accessor to the wall."""
    floors = {}
    for module in TopologicalSorter(graph).static_order():
        above = [floors[name] for name in graph[module] if not name.startswith("xdan.core")]
        floors[module] = 0 if module.startswith("xdan.core") else 1 + max(above, default=0)
    assert max(floors.values()) <= FLOORS


def test_below_the_wall_no_labels():
    below = {module for module in MODULES if module.startswith("xdan.core")}
    outside = {(module, name) for module in below for name in imported(module) if not name.startswith("xdan.core")}
    assert not {(module, name) for module, name in outside if name.startswith("xdan")}
    labelled = ("xarray", "dask", "zarr", "cf_xarray")
    assert not {(module, name) for module, name in outside if name.split(".")[0] in labelled}


# Where arrays become tensors and back, beside the decorator of blocks.
CROSSINGS = {
    "xdan.records.blocks",
    "xdan.records.observing",  # H and R as they are read
    "xdan.records.windows",  # windows of a training
    "xdan.records.setting",  # the errors of a record, in words
    "xdan.network",  # weights
    "xdan.records.model_store",  # weights of a model's learned part
    "xdan.estimation.model_training",  # weights in a checkpoint
    "xdan.estimation.stretches",  # states that a model is fitted on
    "xdan.training.record_source",  # some states, to check derivatives at
    "xdan.training.loop",  # weights and carries in a checkpoint
    "xdan.estimation.iterations",  # the same of an estimate
    "xdan.assimilation.score_pair",  # the diagonal of R
    "xdan.assimilation.score_fields",  # area weights
    "xdan.diagnostics.evaluation_points",  # the digest of a covariance
    "xdan.diagnostics.symmetries",  # which sites are observed
}


def named(tree):
    """Names and attributes that a module speaks of."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_arrays_become_tensors_in_one_place():
    spoken = {
        module: set(named(ast.parse(path.read_text())))
        for module, path in MODULES.items()
        if not module.startswith("xdan.core")
    }
    converts = {"array_to_tensor", "tensor_to_array", "from_numpy"}
    assert {module for module, names in spoken.items() if names & converts} == CROSSINGS
    for name in ("set_num_threads", "to_delayed", "from_numpy"):
        assert {module for module, names in spoken.items() if name in names} == {"xdan.records.blocks"}


def test_only_blocks_and_verbs_cross_the_wall(graph):
    """The accessor and the top only forward."""
    assert not {name for name in graph["xdan.accessor"] if name.startswith("xdan.core")}


def test_optional_libraries_are_imported_in_one_place():
    """Elsewhere their absence would be an error without a remedy."""
    optional = {"holoviews", "hvplot", "panel", "matplotlib", "scipy"}
    direct = {
        (module, alias.name)
        for module, path in MODULES.items()
        for node in nodes(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        if not getattr(node, "level", 0) and alias.name.split(".")[0] in optional
    }
    assert not direct
