"""Files that a command writes at its end: refused at its start, and written whole or not at all."""

import os
import tempfile
from pathlib import Path

import typer

from moeray.cluster.terminal import fail


def check_report_file(path: Path | None, flag: str) -> None:
    """BadParameter of ``flag`` where ``write_report`` could not write; None is no file."""
    if path is None:
        return
    whole = path.resolve()
    written = whole if _is_device(whole) else whole.parent
    if whole.is_dir() or not os.access(written, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written", param_hint=flag)


def write_report(path: Path, text: str) -> None:
    """Put ``text`` in place of the file; a device or a pipe takes it as it comes.

    Ends the command with a message where that fails.
    """
    whole = path.resolve()
    try:
        if _is_device(whole):
            whole.write_text(text, encoding="utf-8")
        else:
            _replace(whole, text)
    except OSError as error:
        fail(f"{path} could not be written: {error}")


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
