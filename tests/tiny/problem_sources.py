"""Where training problems come from, by a name that a process's command line can carry."""

from collections.abc import Callable, Iterator

from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tiny.splits import Split


def problem_source(name: str, split: Split = Split.TRAIN) -> Callable[[int], Iterator[Problem]]:
    """Endless problems by seed: "trained" are the embedded model's, "toy" are for tests."""
    if name == "toy":
        from tests.tiny import toy_problems

        return lambda seed: toy_problems.problems(split, seed)
    if name == "trained":
        from moeray.cluster.tiny import problems

        return lambda seed: problems.problems(split, seed)
    raise ValueError(f"{name!r} is no source of problems, expected trained or toy")
