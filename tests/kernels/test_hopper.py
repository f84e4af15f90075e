"""What the interpreter cannot show: that the kernels compile for Hopper as they are meant to."""

import json
import os
import subprocess
import sys


def test_weights_go_from_registers_to_tensor_cores() -> None:
    """And nothing is spilled. In a process of its own: here kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.hopper"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kernels = json.loads(done.stdout)
    for name, kernel in kernels.items():
        assert (kernel["stack"], kernel["spills"], kernel["from shared memory"]) == (0, 0, 0), name
        assert kernel["from registers"] > 0, name
    # No weight goes to another thread: after all loads only sums do.
    assert kernels["few rows"]["barriers"] <= 3
    assert kernels["linear"]["barriers"] <= 6
