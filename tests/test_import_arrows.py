"""Imports go one way: cluster -> worker -> kernels, and everyone may import the protos.

Reads the sources with ``ast``, so an import inside a function counts as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

CONTRACTS = {"moeray.v1", "moeray.engine", "moeray.vocabulary"}
MAY_IMPORT = {
    "cluster": {"moeray.cluster", *CONTRACTS},
    "worker": {"moeray.worker", "moeray.kernels", *CONTRACTS},
    "kernels": {"moeray.kernels"},
    "protos/moeray/vocabulary": {"moeray.vocabulary"},
}
ENGINE_HOST = Path("cluster/replica.py")
"""The one file of cluster/ that may import moeray.worker."""
BANNED = {
    "cluster": {"torch", "triton", "numpy", "safetensors"},
    "worker": {"ray", "fastapi"},
    "kernels": {"ray", "grpc", "pydantic", "safetensors"},
    "protos/moeray/vocabulary": {"ray", "grpc", "torch", "numpy"},
}


def sources(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def imported_names(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import at line {node.lineno}"
            assert node.module is not None
            yield node.module


def violations(folder: str, source: Path, names: Iterator[str]) -> list[str]:
    allowed = set(MAY_IMPORT[folder])
    banned = set(BANNED[folder])
    if source == REPOSITORY / ENGINE_HOST:
        allowed.add("moeray.worker")
    found = []
    for name in names:
        package = ".".join(name.split(".")[:2])
        ours = name.split(".")[0] == "moeray"
        if (ours and package not in allowed) or name.split(".")[0] in banned:
            found.append(f"{source.name} imports {name}")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_go_one_way(folder: str) -> None:
    files = sources(folder)
    assert files, f"{folder} holds no sources"
    found = [v for file in files for v in violations(folder, file, imported_names(file))]
    assert found == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("cluster", "moeray.worker.engine"),
        ("cluster", "torch"),
        ("worker", "moeray.cluster.errors"),
        ("worker", "ray"),
        ("kernels", "moeray.worker.plan"),
    ],
)
def test_an_arrow_that_runs_back_is_found(folder: str, name: str) -> None:
    assert violations(folder, REPOSITORY / folder / "planted.py", iter([name]))


def test_only_the_replica_imports_the_worker() -> None:
    names = list(imported_names(REPOSITORY / ENGINE_HOST))
    assert any(name.startswith("moeray.worker") for name in names)
