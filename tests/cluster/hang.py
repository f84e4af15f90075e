"""How long tests wait for what must come."""

from typing import Final

HANG_S: Final = 60.0
"""No measure of speed: a busy machine may stand still for seconds."""
