"""Rules of the code base: layers, sizes, and what is never imported."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.processes import start_code

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "twinbud"
FILES = {path.relative_to(SOURCE).with_suffix("").as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
LAYERS = tuple(
    tuple(line.split()) for line in (ROOT / "docs" / "layers.txt").read_text(encoding="utf-8").splitlines() if line
)
"""From the lowest up; packages of one layer may not import each other. The documentation quotes the same file."""
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}


def package_of(module: str) -> str:
    return module.partition("/")[0]


POSIX_ONLY = ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "syslog")


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file it does: ``TYPE_CHECKING`` counts too."""
    names: set[str] = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative path"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def packages_imported(module: str) -> set[str]:
    return {name.split(".")[1] for name in imported(module) if name.startswith("twinbud.")}


def test_a_file_imports_from_its_own_package_or_a_lower_layer_only() -> None:
    for module in FILES.keys() - {"__init__"}:
        own = package_of(module)
        assert own in LEVEL, f"{own} has no layer yet"
        for other in packages_imported(module):
            assert other == own or LEVEL[other] < LEVEL[own], f"{module} imports {other}"


def test_no_file_imports_itself_through_others() -> None:
    files = {module.removesuffix("/__init__"): module for module in FILES if module != "__init__"}
    imports: dict[str, set[str]] = {}
    for module in files.values():
        paths = {name.removeprefix("twinbud.").replace(".", "/") for name in imported(module) if "twinbud." in name}
        named = {path if path in files else path.rpartition("/")[0] for path in paths}
        # importing a file executes the packages that hold it, unless they hold this file too
        named |= {package for path in named for package in packages(path) if not module.startswith(f"{package}/")}
        imports[module] = {files[path] for path in named if path in files} - {module}
    tuple(TopologicalSorter(imports).static_order())  # raises CycleError, which names the files


def test_a_file_stays_short() -> None:
    assert [module for module, path in FILES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 330] == []


def test_a_function_stays_short() -> None:
    for module in FILES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = len((ast.get_docstring(node, clean=False) or "").splitlines())
                length = (node.end_lineno or 0) - node.lineno + 1 - docstring
                assert length <= 60, f"{module}: {node.name} has {length} lines besides its docstring"


CONVERTER = "cli/convert"
"""The command that converts checkpoints for a user who runs it."""
PICKLE_READERS = (CONVERTER, "models/efficientnet_lite0")
"""The only files that may read a pickle, without executing it; the second one reads a file of a known checksum."""


def calls(module: str) -> list[ast.Call]:
    return [node for node in ast.walk(parsed(module)) if isinstance(node, ast.Call)]


def test_a_dataclass_that_holds_arrays_is_compared_as_one_object() -> None:
    """NumPy and torch compare element by element, so that a generated ``==`` raises an error."""
    for module in FILES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.ClassDef) and any(map(is_array, node.body)):
                made = [text for each in node.decorator_list if (text := ast.unparse(each)).startswith("dataclass")]
                assert all("eq=False" in text for text in made), f"{module}: {node.name}"


def is_array(line: ast.stmt) -> bool:
    """Whether the line declares a field with arrays that a generated ``==`` compares."""
    if not isinstance(line, ast.AnnAssign) or (line.value and "compare=False" in ast.unparse(line.value)):
        return False
    hint = ast.unparse(line.annotation)
    words = set(re.findall(r"[\w.]+", hint))
    return bool(words & {"np.ndarray", "numpy.ndarray", "torch.Tensor", "State", "Array"}) and "Callable" not in words


def test_pickles_are_never_opened_except_by_two_files() -> None:
    for module in FILES:
        names = imported(module)
        assert not {name.partition(".")[0] for name in names} & {"dill", "joblib", "shelve"}, module
        assert not {name for name in names if name.partition(".")[0] == "pickle"} - {"pickle.UnpicklingError"}, module
        assert f"twinbud.{CONVERTER.replace('/', '.')}" not in {name.rpartition(".")[0] for name in names}, module
        for call in calls(module):
            if ast.unparse(call.func) == "torch.load":
                assert module in PICKLE_READERS
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert keywords.get("weights_only") == "True", module


def test_only_the_command_line_prints() -> None:
    for module in FILES:
        if package_of(module) != "cli":
            assert "print" not in {ast.unparse(call.func) for call in calls(module)}, module


def test_no_file_is_called_utils() -> None:
    assert not [module for module in FILES if module.rpartition("/")[2] in ("util", "utils", "helpers", "common")]


def test_modules_that_windows_lacks_are_imported_where_they_are_used() -> None:
    for module in FILES:
        top = [node for node in parsed(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", None) for node in top}
        assert not names & {*POSIX_ONLY}, module


def test_every_module_is_imported_without_resource_and_fcntl() -> None:
    """As on Windows; the libraries that this system has cannot do without the other modules."""
    modules = ["twinbud", *("twinbud." + name.replace("/", ".").removesuffix(".__init__") for name in FILES)]
    modules = [name for name in modules if not name.endswith(("__init__", "__main__"))]
    code = (
        "import importlib, sys\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'twinbud']: del sys.modules[name]\n"
        "sys.modules['resource'] = sys.modules['fcntl'] = None\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    process = start_code(code)
    process.join()
    assert process.exitcode == 0
