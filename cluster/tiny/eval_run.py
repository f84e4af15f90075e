"""The driver of ``moeray eval tiny``: asks each problem at each effort and scores what comes back.

Every request is greedy. A request that fails is tried again where the server says that this helps,
and else counts as wrong, with the reason. A sample of the problems is asked once more with a
thinking budget below what the model thought without one.
"""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

from moeray.cluster.client import Client, ClientError
from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.eval_requests import (
    call_text,
    json_text,
    problem_request,
    question,
    with_result,
)
from moeray.cluster.tiny.problem import Call, Problem
from moeray.cluster.tiny.scoring import Score, score_call, score_reply, score_unasked_call
from moeray.v1 import inference_pb2 as pb

BUDGET_EVERY: Final = 10
"""Every so many problems one is asked again with a thinking budget."""
CALL_REFUSED: Final = '{"error":"not allowed"}'
"""The result of a call where none was due."""
PAUSES_S: Final = (0.25, 1.0, 4.0)
"""At least so long between tries."""
_REQUEST_TIMEOUT_S: Final = 600.0
_TICK_S: Final = 0.5
_LOST_AFTER: Final = 20
"""So many failures in a row, and twice what is in flight, mean that the server is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    problems: Sequence[Problem]
    seed: int
    """Of the budgets that are drawn."""
    concurrency: int
    """Requests in flight at once."""
    budget_every: int = BUDGET_EVERY
    pauses_s: tuple[float, ...] = PAUSES_S

    @property
    def trials(self) -> int:
        return len(self.problems) * len(ReasoningEffort)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTrial:
    """A problem asked again with a thinking budget, in tokens."""

    budget: int
    kept: bool
    """No turn thought longer than the budget, and there was an answer all the same."""
    correct: bool
    got: str
    error: str
    """Why there was no answer; empty where there was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One problem at one effort."""

    number: int
    """Which problem of the run, from 0."""
    task: str
    effort: ReasoningEffort
    question: str
    expected: str
    got: str
    needs_call: bool
    score: Score | None
    """None: the request failed."""
    error: str
    budget: BudgetTrial | None
    """None: not asked again, or the model did not think at all."""

    @property
    def correct(self) -> bool:
        return self.score is not None and self.score.correct


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A problem's answers: one, or two where a call came first."""

    score: Score
    turns: tuple[Score, ...]
    expected: str
    got: str


class EvalRun:
    """One evaluation; ``trials`` grows while it runs."""

    def __init__(self, client: Client, plan: Plan) -> None:
        self.trials: list[Trial] = []
        self.correct = 0
        self.ended_early = ""
        """Why, where not all problems were asked: ``interrupted``, or what went wrong."""
        self.plan = plan
        self._client = client
        self._failures_in_a_row = 0
        self._stop = threading.Event()

    def run(self, show: Callable[["EvalRun"], None]) -> None:
        """Ask everything, until done, KeyboardInterrupt or a lost server; ``show`` hears of it.

        Close the client afterwards: that ends the requests which a run that ended early left.
        """
        finished: SimpleQueue[Future[Trial]] = SimpleQueue()
        pool = ThreadPoolExecutor(self.plan.concurrency, thread_name_prefix="eval")
        try:
            for number in range(len(self.plan.problems)):
                for effort in ReasoningEffort:
                    pool.submit(self._try, number, effort).add_done_callback(finished.put)
            while len(self.trials) < self.plan.trials and not self.ended_early:
                with suppress(Empty):
                    self._take(finished.get(timeout=_TICK_S).result())
                show(self)
        except KeyboardInterrupt:
            self.ended_early = "interrupted"
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.correct += trial.correct
        self._failures_in_a_row = 0 if trial.score is not None else self._failures_in_a_row + 1
        if self._failures_in_a_row >= max(_LOST_AFTER, 2 * self.plan.concurrency):
            self.ended_early = (
                f"{self._failures_in_a_row} requests in a row failed, the last: {trial.error}"
            )

    def _try(self, number: int, effort: ReasoningEffort) -> Trial:
        problem = self.plan.problems[number]
        attempt, budget, error = None, None, ""
        try:
            attempt = self._attempt(problem, effort, thinking_budget=None)
        except ClientError as failure:
            error = str(failure)
        if attempt and effort is ReasoningEffort.HIGH and number % self.plan.budget_every == 0:
            budget = self._within_budget(number, attempt)
        return Trial(
            number=number,
            task=problem.task,
            effort=effort,
            question=question(problem),
            expected=attempt.expected if attempt else _expected_first(problem),
            got=attempt.got if attempt else "",
            needs_call=problem.call is not None,
            score=attempt.score if attempt else None,
            error=error,
            budget=budget,
        )

    def _attempt(
        self, problem: Problem, effort: ReasoningEffort, *, thinking_budget: int | None
    ) -> _Attempt:
        request = problem_request(problem, effort, thinking_budget=thinking_budget)
        answer = self._answer(request)
        turns: tuple[Score, ...] = ()
        if problem.call is not None:
            called = score_call(problem.call, problem.tools, answer)
            if not called.correct:
                return _Attempt(called, (called,), _expected_call(problem.call), shown(answer))
            turns = (called,)
            answer = self._answer(with_result(request, answer, problem.call.result))
        got = shown(answer)
        if not turns and len(answer.tool_calls) == 1:
            # As a client would that cannot make this call: it says so, and the turn goes on.
            turns = (score_unasked_call(answer),)
            answer = self._answer(with_result(request, answer, CALL_REFUSED))
        reply = score_reply(problem.reply, answer)
        whole = turns[0].followed_by(reply) if turns else reply
        return _Attempt(whole, (*turns, reply), problem.reply.final, got)

    def _within_budget(self, number: int, free: _Attempt) -> BudgetTrial | None:
        thought = free.turns[0].analysis_tokens
        if not thought:
            return None
        # Below what it thought, so that the budget cuts something off.
        budget = random.Random(f"{self.plan.seed}:{number}").randint(1, max(1, thought - 1))
        problem = self.plan.problems[number]
        try:
            attempt = self._attempt(problem, ReasoningEffort.HIGH, thinking_budget=budget)
        except ClientError as failure:
            return BudgetTrial(budget=budget, kept=False, correct=False, got="", error=str(failure))
        within = all(turn.analysis_tokens <= budget for turn in attempt.turns)
        return BudgetTrial(
            budget=budget,
            kept=within and attempt.score.final_not_empty,
            correct=attempt.score.correct,
            got=attempt.got,
            error="",
        )

    def _answer(self, request: pb.GenerateRequest) -> pb.Answer:
        for pause_s in self.plan.pauses_s:
            try:
                return self._ask(request)
            except ClientError as error:
                if error.retry_after_s is None:
                    raise
                # Ends at once when the run does, and the next try fails as its client is closed.
                self._stop.wait(max(pause_s, error.retry_after_s))
        return self._ask(request)

    def _ask(self, request: pb.GenerateRequest) -> pb.Answer:
        if self._stop.is_set():
            raise ClientError("the run ended")
        response = self._client.complete(request, _REQUEST_TIMEOUT_S)
        if not response.answers:
            raise ClientError("the server sent no answer")
        return response.answers[0]


def shown(answer: pb.Answer) -> str:
    """What was answered, to be read: calls as ``name(arguments)``, and the final text."""
    calls = [call_text(call.name, call.arguments) for call in answer.tool_calls]
    return "\n".join([*calls, answer.final] if answer.final else calls)


def _expected_first(problem: Problem) -> str:
    return _expected_call(problem.call) if problem.call else problem.reply.final


def _expected_call(call: Call) -> str:
    return call_text(call.name, json_text(call.arguments))
