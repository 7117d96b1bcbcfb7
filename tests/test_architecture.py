"""Who may import whom, read from the code; and the rooms that must work where torch is not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

# What analysis, the submitting side and the images' side build on: it knows neither torch nor Hydra nor submitit.
CORE = {"core", "tuning"}
COMMAND_LINE = {"run", "catalogue", "command_line"}
FOREIGN = {"torch", "torchvision", "submitit", "hydra", "omegaconf"}

# Besides the core: rooms and modules that must be imported before torch, or without it.
WITHOUT_TORCH = COMMAND_LINE | {"supervision"}
SINGLE_MODULES_WITHOUT_TORCH = ["benchmarks.measuring.step_times", "benchmarks.process.heartbeat"]

# The rooms of analysis/, in the order in which the data goes through them: from records to numbers, to what people
# read, to the command lines.
ANALYSIS = [
    "statistics wording helpers",
    "runs study_schema schema cells study series",
    "tables figures advice",
    "command recommend page exports watch scaling report compare study_check",
]

# Who knows Optuna: it takes a third of a second, so it is imported where a tuning sweep is at work, and not above.
OPTUNA = {"benchmarks/tuning/trials.py", "analysis/study/importance.py"}


def modules(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    """`analysis/page/__init__.py` -> `analysis.page`."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, also inside functions, but not for type checking alone."""
    return imports_in(ast.parse(path.read_text()))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def imports_in(tree: ast.AST) -> Iterator[str]:
    for_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(name: str) -> str:
    return name.split(".")[0]


def part(name: str) -> str:
    """The room: `benchmarks.core.config.RunConfig` -> `core`; nothing for the top itself."""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", modules("benchmarks/core") + modules("benchmarks/tuning"), ids=dotted)
def test_the_core_imports_only_itself(path: Path) -> None:
    allowed = {"core", part(dotted(path))}
    for imported in imports(path):
        assert top(imported) not in FOREIGN | {"analysis", "slurm", "hydra_plugins"}, imported
        assert top(imported) != "benchmarks" or part(imported) in allowed, imported


@pytest.mark.parametrize("path", modules("benchmarks"), ids=dotted)
def test_benchmarks_import_no_other_room(path: Path) -> None:
    for imported in imports(path):
        assert top(imported) not in {"analysis", "slurm", "hydra_plugins", "submitit"}, imported
        if top(imported) in {"hydra", "omegaconf"}:
            assert part(dotted(path)) in COMMAND_LINE, f"{path} imports {imported}"


@pytest.mark.parametrize("path", modules("analysis"), ids=dotted)
def test_analysis_imports_the_core_and_itself(path: Path) -> None:
    for imported in imports(path):
        assert top(imported) not in FOREIGN | {"slurm", "hydra_plugins"}, imported
        assert top(imported) != "benchmarks" or part(imported) in CORE, imported


@pytest.mark.parametrize("path", modules("analysis"), ids=dotted)
def test_each_room_of_analysis_imports_those_before_it(path: Path) -> None:
    rooms = [room for shelf in ANALYSIS for room in shelf.split()]
    if path != PROJECT / "analysis" / "__init__.py":
        here = rooms.index(part(dotted(path)))
        for imported in imports(path):
            if top(imported) == "analysis":
                assert rooms.index(part(imported)) <= here, imported


@pytest.mark.parametrize("path", modules("slurm"), ids=dotted)
def test_slurm_imports_the_core_itself_and_submitit(path: Path) -> None:
    """And the images' command; but for what runs in a job: that is imported there, inside the entry function."""
    for imported in imports(path):
        assert top(imported) not in FOREIGN - {"submitit"} | {"analysis", "hydra_plugins"}, imported
        if top(imported) == "benchmarks" and part(imported) not in CORE:
            assert path.name == "job.py", imported
            assert imported in {name for function in functions(path) for name in imports_in(function)}, imported


@pytest.mark.parametrize("path", modules("containers"), ids=dotted)
def test_containers_import_the_core_and_themselves(path: Path) -> None:
    for imported in imports(path):
        if path.stem != "selftest":  # runs inside an image
            assert top(imported) not in FOREIGN | {"analysis", "slurm", "hydra_plugins"}, imported
            assert top(imported) != "benchmarks" or part(imported) in CORE, imported


@pytest.mark.parametrize("path", modules("hydra_plugins"), ids=dotted)
def test_the_plugins_are_glue_without_torch(path: Path) -> None:
    """One of them looks into analysis, where repeats are judged by the tables' intervals, and only when it is asked."""
    for imported in imports(path):
        assert top(imported) not in {"torch", "torchvision", "submitit"}, imported
        if top(imported) == "analysis":
            assert (path.stem, imported) == ("repeats", "analysis.cells.intervals.widths")
            assert imported in {name for function in functions(path) for name in imports_in(function)}


MUST_DO_WITHOUT_TORCH = [
    *(name for name in map(dotted, modules("benchmarks")) if part(name) in CORE | WITHOUT_TORCH),
    *SINGLE_MODULES_WITHOUT_TORCH,
    *(dotted(path) for path in modules("containers") if path.stem != "selftest"),
    *(dotted(path) for room in ("slurm", "hydra_plugins", "analysis") for path in modules(room)),
]
# Each module is imported in a fork of its own, of a process that has imported what others have written.
REFUSE_TORCH = """
import importlib, os, sys, traceback

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import hydra, matplotlib.pyplot, pandas, plotly, rich.console, scipy.stats, submitit
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(module)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(module, flush=True)
"""


@pytest.fixture(scope="module")
def without_torch() -> subprocess.CompletedProcess[str]:
    """Prints the names of the modules that could be imported, and why others could not."""
    command = [sys.executable, "-c", REFUSE_TORCH, *MUST_DO_WITHOUT_TORCH]
    return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)


@pytest.mark.parametrize("module", MUST_DO_WITHOUT_TORCH)
def test_imported_where_torch_is_not_installed(module: str, without_torch: subprocess.CompletedProcess[str]) -> None:
    assert module in without_torch.stdout.split(), without_torch.stderr


def test_intervals_need_numpy_alone() -> None:
    """Beyond what a login node has for submitting: repeats are judged there."""
    others = ("torch", "torchvision", "scipy", "matplotlib", "sklearn", "optuna", "tabulate", "jinja2", "pyarrow")
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {others}:\n"
        "            raise ImportError(f'{name} is not installed here')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import analysis.cells.intervals\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


@pytest.mark.parametrize(
    "path",
    [path for folder in ("benchmarks", "slurm", "analysis", "hydra_plugins") for path in modules(folder)],
    ids=dotted,
)
def test_optuna_is_imported_where_a_tuning_sweep_is_at_work(path: Path) -> None:
    if any(top(imported) == "optuna" for imported in imports(path)):
        assert str(path.relative_to(PROJECT)) in OPTUNA
        inside = {name for function in functions(path) for name in imports_in(function)}
        assert {name for name in imports(path) if top(name) == "optuna"} <= inside


def test_no_strategy_is_named_in_the_kernel() -> None:
    kernel = (PROJECT / "benchmarks" / "train.py").read_text()
    for name in (path.stem for path in (PROJECT / "conf" / "strategy").glob("*.yaml")):
        assert f'"{name}"' not in kernel
        assert f"'{name}'" not in kernel


def test_the_timed_loop_is_short_and_reads_no_setting() -> None:
    tree = ast.parse((PROJECT / "benchmarks" / "train.py").read_text())
    loop = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "timed_span")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 40
    assert {argument.arg for argument in loop.args.args} == {"step", "batches", "clock", "beat"}
