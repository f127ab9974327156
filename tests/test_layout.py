"""The shape of the house: folders, the one direction of imports, what stays light, and pinned installs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path as FilePath

import pytest

ROOT = FilePath(__file__).parents[1]
HOMES = {"pam_kernels": ROOT / "kernels", "pam_mobile": ROOT, "pam_export": ROOT / "export"}
LIGHT = ("pam_mobile.errors", "pam_mobile.model.presets", "pam_mobile.cost", "pam_mobile.path", "pam_mobile.budget")


def test_project_folders_are_no_packages() -> None:
    for folder in ("kernels", "export"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists()
    for package, home in HOMES.items():
        assert (home / package / "__init__.py").is_file()


# The arrow of imports: pam_kernels <- pam_mobile <- pam_export


def _imports(tree: ast.AST, inside: bool = False) -> list[tuple[str, bool]]:
    """Top packages of all absolute imports, and whether each is inside a function."""
    found = []
    for node in ast.iter_child_nodes(tree):
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(((node.module or "").partition(".")[0], inside))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found += [(name.partition(".")[0], inside) for name in names]
        found += _imports(node, within)
    return found


def _against_the_arrow(package: str, file: FilePath, source: str) -> list[str]:
    """Imports of a file of `package` that go up."""
    up = {"pam_kernels": {"pam_mobile", "pam_export"}, "pam_mobile": {"pam_export"}, "pam_export": set()}[package]
    reaches_up = package == "pam_mobile" and file.parent.name == "commands"
    return [
        f"{file}: {name}" for name, inside in _imports(ast.parse(source)) if name in up and not (reaches_up and inside)
    ]


@pytest.mark.parametrize("package", list(HOMES))
def test_imports_go_one_way(package: str) -> None:
    files = sorted((HOMES[package] / package).rglob("*.py"))
    assert len(files) > 3
    for file in files:
        assert _against_the_arrow(package, file, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("package", "file", "source"),
    [
        ("pam_kernels", "op.py", "import torch, pam_mobile"),
        ("pam_kernels", "op.py", "def f():\n    from pam_export.recipe import x"),
        ("pam_mobile", "cost.py", "def f():\n    import pam_export"),
        ("pam_mobile", "commands/export.py", "from pam_export import recipe"),
        ("pam_mobile", "commands/export.py", "if True:\n    import pam_export.recipe"),
        ("pam_mobile", "commands/export.py", "class A:\n    import pam_export"),
        ("pam_mobile", "cli.py", "importlib.import_module('pam_export.recipe')"),
    ],
)
def test_an_import_against_the_arrow_is_caught(package: str, file: str, source: str) -> None:
    assert _against_the_arrow(package, FilePath(file), source)


@pytest.mark.parametrize(
    ("package", "file", "source"),
    [
        ("pam_mobile", "commands/export.py", "def f():\n    from pam_export import recipe"),
        ("pam_mobile", "cost.py", "from pam_kernels import Connect\nfrom .path import Path"),
        ("pam_export", "recipe.py", "import pam_mobile, pam_kernels"),
    ],
)
def test_an_import_along_the_arrow_is_allowed(package: str, file: str, source: str) -> None:
    assert _against_the_arrow(package, FilePath(file), source) == []


# What stays light


def _loaded_by(modules: tuple[str, ...]) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_presets_costs_paths_and_budgets_need_no_torch() -> None:
    loaded = _loaded_by(LIGHT)
    assert "pam_mobile" in loaded
    assert not loaded & {"torch", "scipy", "cv2", "pam_kernels", "pam_export", "matplotlib", "safetensors"}


def test_the_check_for_torch_sees_torch() -> None:
    assert "torch" in _loaded_by(("pam_kernels",))


# Pinned installs


def _pip_calls(makefile: str) -> list[str]:
    """Command lines that install with pip, continuation lines joined."""
    lines = makefile.replace("\\\n", " ").splitlines()
    return [line for line in lines if re.search(r"\bpip\d?\b.*\b(install|download|wheel)\b", line)]


def _unpinned(makefile: str) -> list[str]:
    return [line for line in _pip_calls(makefile) if not re.search(r"(-c|--constraint)[ =]constraints\.txt\b", line)]


def test_every_install_uses_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert _pip_calls(makefile)
    assert _unpinned(makefile) == []


def test_an_install_without_constraints_is_caught() -> None:
    assert _unpinned("x:\n\tpython -m pip install -q -c constraints.txt -e .\n\t$(BIN)/pip install torch\n")
    assert _unpinned("x:\n\tpip install \\\n\t  torch\n")
    assert not _unpinned("x:\n\tpip install \\\n\t  -c constraints.txt torch\n")


def test_constraints_pin_everything_exactly_and_torch_for_every_device() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert "torch==2.13.0" in lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line  # no +cpu, no range, no URL


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "Makefile"])
def test_installs_come_from_the_configured_index_only(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"\w+://|git\+|index-url|find-links|\bpip\b.*\s-[if]\s", text)


def test_dependencies_of_the_package_are_all_constrained() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    block = pyproject[pyproject.index("dependencies = [") : pyproject.index("[project.scripts]")]
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)(?:[<>=\[][^"]*)?"', block)} - {"pam-mobile"}
    assert len(wanted) > 10
    assert wanted <= pinned, wanted - pinned
