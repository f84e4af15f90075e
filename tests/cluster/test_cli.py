"""The command line starts quickly, and says what is wrong."""

import subprocess
import sys

import grpc
import pytest

from tests.integration.serving import run


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("moeray.cluster.cli", {"torch", "ray"}),
        ("moeray.cluster.gateway", {"torch", "triton", "safetensors"}),
        ("moeray.cluster.router_process", {"torch", "triton", "safetensors", "pydantic"}),
        ("moeray.cluster.replica", {"torch", "triton"}),
    ],
)
def test_what_starting_does_not_need(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*{absent!r} & set(sys.modules))"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert imported.stdout == "\n"


def test_a_machine_without_the_engine_is_told_so() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None; sys.argv = ['moeray', 'serve', '--port', '0'];"
        "from moeray.cluster.cli import main; main()"
    )
    refused = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr == "moeray: this needs numpy: pip install 'moeray[engine]'\n"


def test_help_lists_the_commands_of_both_folders() -> None:
    said = run("--help")
    assert said.returncode == 0
    for command in ("serve", "stop", "generate", "chat", "demo", "eval", "checkpoint"):
        assert command in said.stdout


def test_commands_of_the_engine_parse_their_own_arguments() -> None:
    assert "--size" in run("checkpoint", "make", "--help").stdout
    refused = run("checkpoint", "make", "x", "--size", "huge")
    assert refused.returncode == 2
    assert "huge" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "hi", "--effort", "extreme"), "extreme"),
        (("generate", "hi", "--temperature", "3"), "--temperature"),
        (("generate", "hi", "--max-output-tokens", "3"), "--max-output-tokens"),
        (("generate",), "PROMPT"),
        (("serve", "--prot", "1"), "--prot"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], said: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert said.lower() in refused.stderr.lower()


@pytest.mark.parametrize("command", [("generate", "hi", "--timeout", "5"), ("chat",)])
def test_nobody_listens(command: tuple[str, ...]) -> None:
    refused = run(*command, "--target", "127.0.0.1:1")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"moeray: {grpc.StatusCode.UNAVAILABLE.name}: ")
    assert "is `moeray serve` running at 127.0.0.1:1?" in refused.stderr


def test_stop_needs_an_address() -> None:
    refused = run("stop")
    assert refused.returncode == 1
    assert "RAY_ADDRESS" in refused.stderr
