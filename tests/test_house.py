"""The package holds to its own plan: imports point down and never in a circle, rooms stay small, private names stay at home."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ORDER = (
    ("_choices", "_layout", "_lazy", "_optional", "_warnings", "_words", "files"),
    ("ops",),
    ("model", "figures", "stats", "display"),
    ("engine",),
    ("patching", "attention", "lens"),
    ("cost",),
    ("cot", "traces"),
    ("exports",),
    ("runs",),
    ("paper",),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""Packages from the ground floor up. An import points to a lower floor, or to a sibling that does not import back."""

LONGEST = 500
"""Lines of a file, docstrings and comments included."""

COMPILED = {"pycotmech._core", "pycotmech._C"}
"""The extension modules, which belong to the whole package."""

NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
"""Public methods of every NamedTuple, in spite of their names."""

LIBRARIES = {
    "_getframe": "sys: the frame of the caller",
    "_C": "torch: which ops have a kernel for a dispatch key",
    "_dispatch_has_kernel_for_dispatch_key": "torch: as above",
    "_assert_async": "torch: a check on the device that does not wait for it",
    "_linear_pointwise": "torch: oneDNN's product with packed weights",
    "_version": "torch: whether a tensor was written to",
    "_experts_implementation": "transformers: the code that a mixture of experts runs on",
    "_forward_hooks": "torch: whether a module has hooks, which decide whether it may be bypassed",
    "_forward_pre_hooks": "torch: as above",
    "_modules": "torch: a module's own parts, without the generators of named_modules, which took 1 % of a short sweep",
    "_orig_mod": "torch: the module that torch.compile was given",
    "_torchdynamo_orig_callable": "torch: the method that torch.compile was given",
    "_parameters": "torch: a module's own weights, without the search of its __getattr__, which took 1 % of a sweep",
    "_buffers": "torch: as above, of what a module keeps that is no weight",
    "_global_forward_hooks": "torch: as above, hooks of all modules",
    "_global_forward_pre_hooks": "torch: as above",
    "_attn_implementation": "transformers: the attention that a model runs on",
    "_can_set_attn_implementation": "transformers: whether it can run on another",
    "_keys_to_ignore_on_load_unexpected": "transformers: which tensors of a checkpoint a model does not read",
    "_hf_hook": "accelerate: what a module does with its inputs and weights before it is called",
    "_name_or_path": "transformers: where a model came from",
    "_old_forward": "accelerate: the forward that it wrapped",
    "_tied_weights_keys": "transformers: which weights are one and the same",
    "_module": "nnsight: the module that a model wraps",
    "_edits": "nnsight: interventions that a model carries, which would be ignored",
    "_default_mediators": "nnsight before 0.8: as above",
    "_weights_processed": "TransformerLens: whether the weights of a bridge are still those of the Hugging Face model",
}
"""Private names of libraries that have no public spelling, and what they are read for."""


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in sorted((ROOT / "pycotmech").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module names in its imports: those for typing and those inside functions too."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules()}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found |= {submodule} if submodule in modules() else {node.module} & set(modules())
    return found - {module}


@functools.cache
def graph() -> dict[str, set[str]]:
    """module -> modules that it imports. The package's own face, which loads every name lazily, is not part of it."""
    return {m: imports_of(m) - {"pycotmech"} for m in modules() if m != "pycotmech"}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in sorted(edges[node]):
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in number:
            visit(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_way_of_others():
    found = circles(graph())
    assert not found, "\n".join(" <-> ".join(c) for c in found)


def floor_of(module: str) -> int:
    room = module.split(".")[1]
    floors = [i for i, rooms in enumerate(ORDER) if room in rooms]
    assert floors, f"{module}: the package {room!r} has no floor; add it to ORDER"
    return floors[0]


def test_imports_point_down():
    upward = {(m, to) for m, targets in graph().items() for to in targets if floor_of(to) > floor_of(m)}
    assert not upward, sorted(upward)


def test_siblings_import_one_way():
    rooms = {(m.split(".")[1], to.split(".")[1]) for m, targets in graph().items() for to in targets}
    both = sorted((a, b) for a, b in rooms if a < b and (b, a) in rooms)
    assert not both, both


def test_files_are_short():
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules().values()}
    long = {name: n for name, n in lines.items() if n > LONGEST}
    assert not long, f"more than {LONGEST} lines: {long}"


def test_every_module_says_what_it_does():
    silent = [m for m in modules() if not ast.get_docstring(tree_of(m))]
    assert not silent, silent


# ---- private names ------------------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a module defines: functions, classes, fields and variables, attributes of `self` and `cls`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            found.add(node.attr)
    return found


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "ctx")


def foreign_private_names(module: str) -> set[str]:
    """What a module takes of others that is not meant for it, as 'line: name'."""
    tree, home = tree_of(module), module if is_package(module) else module.rpartition(".")[0]
    own, found = own_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pycotmech":
            for alias in node.names:
                # A file with a leading underscore belongs to its package, in which files may import it.
                at_home = f"{node.module}.{alias.name}" in modules().keys() | COMPILED and f"{home}.".startswith(
                    f"{node.module}."
                )
                if is_private(alias.name) and not at_home:
                    found.add(f"line {node.lineno}: {node.module}.{alias.name}")
            parts = (node.module or "").split(".")
            private = [i for i, part in enumerate(parts) if is_private(part)]
            if private and not f"{home}.".startswith(".".join(parts[: private[0]]) + "."):
                found.add(f"line {node.lineno}: {node.module}")
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node.value):
            if node.attr not in own | NAMED_TUPLE | LIBRARIES.keys():
                found.add(f"line {node.lineno}: {ast.unparse(node)}")
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr")
        ):
            name = node.args[1] if len(node.args) > 1 else None
            text = name.value if isinstance(name, ast.Constant) else None
            if isinstance(text, str) and is_private(text) and text not in own | LIBRARIES.keys():
                found.add(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_private_names_stay_at_home(module):
    found = foreign_private_names(module)
    assert not found, "\n".join(sorted(found))


# ---- tests --------------------------------------------------------------------------------------------------------------


def told_tests(package: str) -> tuple[set[str], list[str]]:
    """Of a package's docstring what follows "Tests:": names in backticks without the test files, and the test files."""
    words = re.findall(r"`([\w./]+)`", (ast.get_docstring(tree_of(package)) or "").partition("Tests:")[2])
    return {w for w in words if not w.endswith(".py")}, [w for w in words if w.endswith(".py")]


def home_of_tests(module: str) -> Path:
    """The folder of tests/ that mirrors a module's package."""
    return (ROOT / "tests").joinpath(*module.split(".")[1:-1])


@pytest.mark.parametrize("package", sorted(m for m in modules() if is_package(m)))
def test_tests_that_a_package_names_exist(package):
    missing = [name for name in told_tests(package)[1] if not ((ROOT / name).is_file() or any((ROOT / "tests").rglob(name)))]
    assert not missing, f"{package}: {missing}"


@pytest.mark.parametrize("module", sorted(m for m in modules() if not is_package(m)))
def test_a_module_has_a_test_or_its_package_says_which(module):
    package, _, name = module.rpartition(".")
    bare = name.strip("_").removesuffix("_figure")  # a figure is drawn in the test of what it shows
    own = (home_of_tests(module) / f"test_{bare}.py").is_file()
    assert own or {name, bare} & told_tests(package)[0], (
        f"{module}: expected {home_of_tests(module).relative_to(ROOT)}/test_{bare}.py, or the docstring of {package} to say "
        f"after 'Tests:' which test covers `{name}`"
    )


@pytest.mark.parametrize("package", ["pycotmech", "pycotmech.runs", "pycotmech.traces"])
def test_type_checkers_know_names_that_are_loaded_when_first_used(package):
    known = {
        alias.asname or alias.name
        for node in ast.walk(tree_of(package))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public = {name for name in importlib.import_module(package).__all__ if not name.startswith("__")}
    assert not (missing := public - known), f"{package}: import {sorted(missing)} under `if TYPE_CHECKING`"


def test_warnings_point_at_the_caller():
    """`_warnings.warn` finds the caller's line (tests/patching/test_warnings.py); nothing else in the package issues any."""
    issuing = [
        module
        for module in modules()
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert issuing == ["pycotmech._warnings"], issuing
