"""What docs/developing.md says of the package: its state that lives on between calls, and which wing imports which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_import import BELOW

import xdan

ROOT = Path(xdan.__file__).parents[1]
PAGE = (ROOT / "docs" / "developing.md").read_text()

CONTAINERS = {"dict", "list", "set", "OrderedDict", "defaultdict", "deque", "Counter", "bytearray"}
# Calls whose answers hold state, or guard it.
STATEFUL = {"local", "Lock", "RLock", "ContextVar", "Registry", "Pool", "WeakKeyDictionary", "WeakValueDictionary"}
CACHES = {"cache", "lru_cache"}
# Methods that change a container, and those that change the whole process.
CHANGES = {"add", "append", "clear", "extend", "insert", "move_to_end", "pop", "popitem", "setdefault", "update"}
PROCESS_WIDE = {
    "filterwarnings",
    "mallopt",
    "manual_seed",
    "register_module_buffer_registration_hook",
    "register_module_parameter_registration_hook",
    "set_default_device",
    "set_default_dtype",
    "set_num_interop_threads",
    "set_num_threads",
    "signal",
    "use_deterministic_algorithms",
}


def name_of(node: ast.expr) -> str:
    """Last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def parts(target: ast.expr) -> list[ast.expr]:
    """Targets of an assignment, one by one."""
    return target.elts if isinstance(target, ast.Tuple) else [target]


def is_container(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return name_of(value.func) in CONTAINERS
    return isinstance(value, (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp))


def is_empty(value: ast.expr) -> bool:
    held = [*value.args, *value.keywords] if isinstance(value, ast.Call) else list(ast.iter_child_nodes(value))
    return is_container(value) and not [child for child in held if not isinstance(child, ast.expr_context)]


def of_new_object(function: ast.expr) -> bool:
    """Such as the seed of a generator: no state of the process."""
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Call)


def changed(tree: ast.Module) -> set[str]:
    """Names whose value some statement of a module changes, or that a function sets as global."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            names |= set(node.names)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names.add(name_of(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            names.add(name_of(node.func.value))
    return names


def state_of(source: str) -> Iterator[str]:
    """Names of a module's state: caches, changed containers, locks, pools of objects, settings of the process."""
    tree = ast.parse(source)
    written = changed(tree)
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = [n for t in (node.targets if isinstance(node, ast.Assign) else [node.target]) for n in parts(t)]
            called = name_of(node.value.func) if isinstance(node.value, ast.Call) else ""
            for target in map(name_of, targets):
                if called in STATEFUL or is_empty(node.value) or (target in written and not target.startswith("__")):
                    yield target
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) in PROCESS_WIDE and not of_new_object(node.func):
            yield name_of(node.func)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = {name_of(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
            if decorators & CACHES:
                yield node.name
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Attribute) and name_of(node.value.func) in STATEFUL:
                yield target.attr


def kept() -> set[str]:
    package = Path(xdan.__file__).parent
    return {
        f"{path.relative_to(package).as_posix()}: {name}"
        for path in sorted(package.rglob("*.py"))
        for name in state_of(path.read_text())
    }


def test_the_page_lists_all_state():
    """A new cache, registry, lock or setting of the process has a row in the table of docs/developing.md."""
    listed = set(re.findall(r"^\| `([\w/]+\.py: \w+)` \|", PAGE, re.M))
    assert listed == kept()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("_units = {'a': 1}\nprint(_units['a'])", []),
        ("_known = {}", ["_known"]),
        ("_known: dict[str, int] = {}", ["_known"]),
        ("_known = dict()", ["_known"]),
        ("table = {'a': 1}\ndef f(x):\n    table[x] = 2", ["table"]),
        ("table = {'a': 1}\ndef f(x):\n    table.setdefault(x, 2)", ["table"]),
        ("last = None\ndef f(x):\n    global last\n    last = x", ["last"]),
        ("import threading\nlock = threading.Lock()", ["lock"]),
        ("@functools.lru_cache(maxsize=3)\ndef f(x):\n    return x", ["f"]),
        ("class A:\n    @cache\n    def f(self):\n        return 1", ["f"]),
        ("class A:\n    def __init__(self):\n        self.pool: Pool[int] = Pool()", ["pool"]),
        ("def f():\n    torch.set_num_threads(1)", ["set_num_threads"]),
        ("_first, _last = 1, 3\nnames = {}['a']\nnames[0] = 1", ["names"]),
        ("def f():\n    mallopt(-1, 3)", ["mallopt"]),
        ("def f(g):\n    signal.signal(signal.SIGINT, g)", ["signal"]),
        ("generator = torch.Generator().manual_seed(0)", []),
        ("torch.manual_seed(0)", ["manual_seed"]),
    ],
)
def test_state_is_seen(source, names):
    assert list(state_of(source)) == names


def test_the_page_draws_the_wings_as_the_import_test_has_them():
    drawn = {
        name: set(re.findall(r"`(\w+)`", below))
        for name, below in re.findall(r"^\| `(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", PAGE, re.M)
    }
    assert drawn == {name: set(below) for name, below in BELOW.items()}
