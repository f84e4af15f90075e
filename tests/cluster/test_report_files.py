"""Report files: refused before the work, and whole or not at all after it."""

import os
from pathlib import Path

import pytest
import typer

from moeray.cluster.report_files import check_report_file, write_report


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_put_in_place_whole(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "out.json"
    if old is not None:
        path.write_text(old)
    check_report_file(path, "--json")
    write_report(path, "né\n")
    assert path.read_text(encoding="utf-8") == "né\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def full(source: str, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(typer.Exit) as ended:
        write_report(path, "new")
    assert ended.value.exit_code == 1
    assert "out.json could not be written: no space" in capsys.readouterr().err
    assert [(each, each.read_text()) for each in tmp_path.iterdir()] == [(path, "old")]


def test_a_pipe_takes_it_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_report_file(path, "--json")
        write_report(path, "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert path.is_fifo()


@pytest.mark.parametrize("name", ["folder", "missing/out.json"])
def test_what_is_no_file_is_refused_by_its_flag(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(typer.BadParameter, match="cannot be written") as refused:
        check_report_file(tmp_path / name, "--html")
    assert refused.value.param_hint == "--html"


def test_no_file_is_fine() -> None:
    check_report_file(None, "--json")
