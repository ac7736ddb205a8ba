"""Who imports whom, what each file knows, and how long it is. python -m pytest tests/test_layout.py"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIX = ("model", "data", "kd", "lamol", "eval", "train")
PATHS = [ROOT / f"{name}.py" for name in SIX] + sorted((ROOT / "lab").rglob("*.py"))

# Each part of the project, from the bottom to the top, and the parts that it may import besides itself.
MAY_IMPORT = {
    "lab.fast": "",
    "lab.errors": "",
    "lab.files": "lab.errors",
    "model": "lab.fast",
    "data": "lab.fast model",
    "kd": "lab.fast model data",
    "lamol": "lab.fast model data",
    "lab.sql": "",
    "eval": "lab.fast model data lab.sql",
    "lab.tasks": "lab.errors lab.files lab.sql data eval",
    "lab.run": "lab.fast lab.errors lab.files model data kd eval lab.tasks",
    "lab.hacks": "lab.fast model data kd lamol eval",
    "train": "lab.fast model data kd lamol eval lab.run",
    "lab.nano": "lab.errors lab.files model data kd lab.tasks lab.run",
    "lab.paper": "lab.fast lab.errors lab.files data lamol eval lab.tasks lab.run train lab.nano",
    "lab.compare": "lab.errors lab.run lab.paper",
    "lab.prefetch": "lab.errors lab.tasks lab.run lab.paper",
    "lab.check": " ".join([*SIX, "lab.fast lab.errors lab.files lab.tasks lab.run lab.nano lab.paper"]),
    "lab.show": " ".join([*SIX, "lab.fast lab.errors lab.files lab.sql lab.tasks lab.run lab.nano"]),
    "lab.course": " ".join([*SIX, "lab.errors lab.files"]),
}


def module_of(path: Path) -> str:
    """lab/run/__init__.py -> lab.run, lab/run/seeds.py -> lab.run.seeds"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PATHS}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def part_of(module: str) -> str:
    """lab.run.seeds -> lab.run"""
    return ".".join(module.split(".")[:2])


def under_main(tree):
    """The nodes under `if __name__ == "__main__":`."""
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    return {id(node) for block in blocks for node in ast.walk(block)}


def imports(module: str, when_run: bool = False) -> set[str]:
    """All that a module imports, at the top or later. when_run: also under `if __name__ == "__main__":`."""
    tree, found = TREES[module], set()
    left_out = set() if when_run else under_main(tree)
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: import by full names"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES or name.split(".")[0] in (*SIX, "lab")}


# ---------------------------------------------------------------------- layers


def test_layers_import_downwards():
    parts = list(MAY_IMPORT)
    for i, allowed in enumerate(MAY_IMPORT.values()):
        assert set(allowed.split()) <= set(parts[:i])  # so there is no circle between them
    wrong = []
    for module in MODULES.keys() - {"lab"}:
        part = part_of(module)
        if part not in MAY_IMPORT:
            wrong.append(f"{module}: a new part needs a place in the layers")
            continue
        for name in ours(module):
            if part_of(name) not in (part, *MAY_IMPORT[part].split()) or name not in MODULES:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_import_comes_back_to_its_module():
    """Neither at the top of a file nor within its functions."""
    edges = {module: ours(module) for module in MODULES}
    done = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for name in sorted(edges.get(module, ())):
                visit(name, [*way, module])
            done.add(module)

    for module in edges:
        visit(module, [])


def test_the_six_files_and_lab_fast_need_few_packages():
    for module in MODULES:
        if module in SIX or part_of(module) == "lab.fast":
            others = {name.split(".")[0] for name in imports(module) - ours(module)} - sys.stdlib_module_names
            allowed = {"torch"} if module not in SIX else {"torch", "tiktoken", "numpy", "rouge_score"}
            assert others <= allowed, f"{module} imports {others - allowed}"


def test_when_run_a_file_shows_its_page_and_nothing_else():
    for module in SIX:
        assert imports(module, when_run=True) - imports(module) - {"sys"} <= {f"lab.show.{module}"}


def test_train_is_imported_only_where_runs_are_started():
    importers = {part_of(module) for module in MODULES if "train" in imports(module, when_run=True)}
    assert importers <= {"lab.check", "lab.show", "lab.paper", "lab.course"}


def test_importing_the_model_loads_torch_and_lab_fast_alone():
    """In a fresh interpreter. The other files that are read load no more of lab, and of the packages their own."""
    code = """
import sys
for name in ("model", "data", "kd", "lamol", "eval"):
    __import__(name)
    packages = [p for p in ("tiktoken", "rouge_score", "safetensors", "transformers", "matplotlib") if p in sys.modules]
    print(name, *packages, *[m for m in sys.modules if m.startswith("lab.") and not m.startswith("lab.fast")])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == [
        "model",
        "data tiktoken",
        "kd tiktoken",
        "lamol tiktoken",
        "eval tiktoken rouge_score lab.sql",
    ]


# ---------------------------------------------------------------------- what a file knows, and how long it is


@pytest.mark.parametrize("name", SIX)
def test_no_machinery_is_spoken_of_in_the_files_that_are_read(name):
    """Processes, locks, checkpoints and resuming are things of lab/run. The command line may name them."""
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    for node in TREES[name].body:
        if name == "train" and isinstance(node, ast.FunctionDef) and node.name == "main":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    for number, line in enumerate(lines, 1):
        found = re.search(r"\b(ranks?|locks?|checkpoints?|resumed?)\b", line, re.IGNORECASE)
        assert not found, f"{name}.py, line {number}: {found[0]}"


def test_no_file_has_more_than_330_lines_and_no_function_more_than_60():
    too_long = []
    for module, path in MODULES.items():
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 330:
            too_long.append(f"{module}: {n} lines")
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef) and (n := node.end_lineno - node.lineno + 1) > 60:
                too_long.append(f"{module}.{node.name}: {n} lines")
    assert not too_long
