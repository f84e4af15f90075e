"""Folders for ranks' sockets: removed at the end, and swept up after processes that died."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from moeray.worker.socket_folder import SocketFolder

LEAVES_A_FOLDER = """
import os, socket
from moeray.worker.socket_folder import SocketFolder

folder = SocketFolder()
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(folder.socket))
print(folder.socket.parent, flush=True)
os._exit(1)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def make_old(folder: Path) -> Path:
    os.utime(folder, (1, 1))
    return folder


def abandoned(temporary: Path) -> Path:
    run = subprocess.run(
        [sys.executable, "-c", LEAVES_A_FOLDER],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    return make_old(Path(run.stdout.strip()))


def test_a_folder_goes_with_its_socket() -> None:
    folder = SocketFolder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.socket))
        folder.remove()
        folder.remove()
    assert not folder.socket.parent.exists()


def test_what_a_dead_process_left_is_removed(temporary: Path) -> None:
    left = abandoned(temporary)
    assert (left / "ranks").is_socket()
    SocketFolder().remove()
    assert not left.exists()


def test_folders_in_use_new_ones_and_foreign_ones_stay(temporary: Path) -> None:
    in_use = SocketFolder()
    make_old(in_use.socket.parent)
    new = abandoned(temporary)
    os.utime(new)
    foreign = temporary / "moeray-ranks-notes"
    foreign.mkdir()
    (foreign / "text").write_text("mine")
    make_old(foreign)
    (temporary / "moeray-ranks-file").write_text("mine")
    SocketFolder().remove()
    assert in_use.socket.parent.exists() and new.exists()
    assert (foreign / "text").read_text() == "mine"
    in_use.remove()
