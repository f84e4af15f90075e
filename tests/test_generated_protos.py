"""The committed protobuf code is what the committed .proto files give."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PROTOS = ["moeray/v1/inference.proto", "moeray/engine/v1/engine.proto"]


@pytest.mark.parametrize("proto", PROTOS)
def test_generated_code_is_fresh(proto: str, tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        assert shutil.which(plugin, path=str(scripts)), f"{plugin} is not installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", "protos"),
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            *(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"),
            *(f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}", proto),
        ],
        check=True,
        cwd=REPOSITORY,
    )
    made = sorted(tmp_path.rglob("*_pb2*.py*"))
    assert len(made) == 4
    for file in made:
        committed = REPOSITORY / "protos" / file.relative_to(tmp_path)
        assert file.read_text() == committed.read_text(), f"{committed} is stale: run make proto"
