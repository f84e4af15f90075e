"""When a router counts as silent: only one that answers nothing though it is asked."""

from moeray.cluster.router_silence import SILENT_TICKS, STARTING_TICKS, RouterSilence


def ticks_until_silent(silence: RouterSilence, limit: int = 200) -> int | None:
    return next((n for n in range(1, limit) if silence.tick()), None)


def known_router() -> RouterSilence:
    silence = RouterSilence()
    silence.asked()
    silence.answered()
    return silence


def test_calls_without_any_answer_are_silence() -> None:
    silence = known_router()
    silence.asked()
    assert ticks_until_silent(silence) == SILENT_TICKS


def test_any_answer_ends_the_silence() -> None:
    silence = known_router()
    silence.asked()
    for _ in range(20):
        for _ in range(SILENT_TICKS - 1):
            assert not silence.tick()
        silence.asked()
        silence.answered()
    assert silence.is_waiting


def test_nobody_asks_nobody_is_silent() -> None:
    silence = known_router()
    assert not silence.is_waiting
    assert ticks_until_silent(silence) is None
    silence.asked()
    silence.given_up()
    assert ticks_until_silent(silence) is None


def test_giving_up_on_calls_does_not_hide_the_silence() -> None:
    silence = known_router()
    silence.asked()
    for _ in range(SILENT_TICKS - 1):
        assert not silence.tick()
    silence.given_up()
    silence.asked()
    assert silence.tick()


def test_a_router_that_was_lost_may_take_its_time_to_start() -> None:
    silence = known_router()
    silence.asked()
    silence.lost()
    silence.asked()
    assert ticks_until_silent(silence) == STARTING_TICKS


def test_a_silent_router_is_ended_once() -> None:
    silence = known_router()
    silence.asked()
    assert ticks_until_silent(silence) == SILENT_TICKS
    assert ticks_until_silent(silence) == STARTING_TICKS
