"""What all tests share: calm hypothesis settings, and two models, each made once."""

import os
from pathlib import Path

import pytest
from hypothesis import Phase, settings

settings.register_profile(
    "moeray",
    # Tests run on machines that are busy with other things: time is no property of the code.
    deadline=None,
    # Without the phase that explains failures: it traces every line, and policy takes much longer.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink),
)
settings.load_profile("moeray")


@pytest.fixture(scope="session")
def embedded_cache() -> Path:
    """The cache folder of the repository's own demo and tests."""
    own = Path(__file__).parent.parent / ".cache" / "moeray"
    return Path(os.environ.get("MOERAY_CACHE_DIR") or own)


@pytest.fixture(scope="session")
def embedded_model(embedded_cache: Path) -> Path:
    """Folder of the embedded checkpoint."""
    from moeray.worker.embedded import ensure_embedded

    return ensure_embedded(embedded_cache)


@pytest.fixture(scope="session")
def random_model(embedded_cache: Path) -> Path:
    """Folder of a small random checkpoint, whose answers do not end by chance."""
    from tests.random_model import ensure_random_model

    return ensure_random_model(embedded_cache)
