"""Which engines the next try of an answer keeps away from."""

from moeray.cluster.errors import NotReached, Unavailable
from moeray.cluster.failed_tries import FailedTries

from .fake_engine import FakeEngine

E1, E2 = (FakeEngine(name).info() for name in ("e1", "e2"))
OTHER = FakeEngine("e3", model="other").info()


def test_before_the_first_failure_nobody_is_avoided() -> None:
    failed = FailedTries()
    assert len(failed) == 0 and failed.avoided([E1], "tiny") == ()


def test_an_engine_that_lost_the_request_is_avoided_for_good() -> None:
    failed = FailedTries()
    failed.note("e1", Unavailable("lost it"))
    assert failed.avoided([E1, E2], "tiny") == failed.avoided([E1], "tiny") == ("e1",)


def test_an_engine_that_was_not_reached_is_avoided_while_there_is_another_of_its_model() -> None:
    failed = FailedTries()
    failed.note("e1", NotReached("no link"))
    assert failed.avoided([E1, E2, OTHER], "tiny") == ("e1",)
    assert failed.avoided([E1, OTHER], "tiny") == ()


def test_where_the_only_other_one_lost_it_the_one_that_was_not_reached_has_its_chance() -> None:
    failed = FailedTries()
    failed.note("e2", Unavailable("lost it"))
    failed.note("e1", NotReached("no link"))
    assert failed.avoided([E1, E2], "tiny") == ("e2",)
    assert len(failed) == 2
