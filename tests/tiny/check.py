"""How the model in training answers held-out problems, greedily, turn by turn.

Nothing is masked, so a header that the engine would not allow is a wrong answer. A reply after a
call sees the right call. The evaluation through the public API is ``moeray eval tiny``.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.problem import Reply
from moeray.cluster.tiny.splits import Split
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.vocabulary.harmony_tokens import CALL, END, RETURN
from tests.tiny.model import Rows, TinyModel
from tests.tiny.problem_sources import problem_source
from tests.tiny.samples import EFFORTS, UNSTORED_TOKEN, SampleWriter, Turn
from tests.tiny.vocabulary import Vocabulary

LONGER = 16
"""By so many tokens an answer may be longer than the right one before it is given up."""
AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One turn and what the model wrote."""

    turn: Turn
    written: list[int]
    analysis_tokens: int
    right: bool


class HeldOutCheck:
    """A fixed set of held-out problems."""

    def __init__(self, source: str, vocabulary: Vocabulary, *, problems: int) -> None:
        self._tokenizer = HarmonyTokenizer.load()
        self._writer = SampleWriter(self._tokenizer)
        self._vocabulary = vocabulary
        drawn = problem_source(source, Split.HELD_OUT)(0)
        self._problems = list(islice(drawn, problems))

    def run(self, model: TinyModel) -> list[Answered]:
        """The answers to every problem at every effort."""
        turns = [
            turn
            for effort in EFFORTS
            for problem in self._problems
            for turn in self._writer.turns(problem, effort)
        ]
        # Like lengths together, so that little is padding.
        turns.sort(key=lambda turn: self._longest(turn))
        groups = [turns[i : i + AT_ONCE] for i in range(0, len(turns), AT_ONCE)]
        written = [tokens for group in groups for tokens in self._generate(model, group)]
        return [self._judged(turn, tokens) for turn, tokens in zip(turns, written, strict=True)]

    def report(self, answers: Sequence[Answered]) -> Iterator[str]:
        """Lines: accuracy by task and effort, thinking by effort, one wrong answer a task."""
        cells: defaultdict[tuple[str, ReasoningEffort], list[bool]] = defaultdict(list)
        for answer in answers:
            cells[answer.turn.problem.task, answer.turn.effort].append(answer.right)
        for task in sorted({task for task, _ in cells}):
            shares = (_share(cells[task, effort]) for effort in EFFORTS)
            yield f"  {task:24} {' '.join(shares)}"
        for effort in EFFORTS:
            these = [answer for answer in answers if answer.turn.effort is effort]
            thought = sum(answer.analysis_tokens for answer in these) / max(len(these), 1)
            right = _share([answer.right for answer in these])
            yield f"  {effort.value:24} {right} of turns, {thought:.1f} analysis tokens"
        shown: set[str] = set()
        for answer in answers:
            task = answer.turn.problem.task
            if not answer.right and task not in shown:
                shown.add(task)
                yield from self._shown(answer)

    def _shown(self, answer: Answered) -> Iterator[str]:
        turn = answer.turn
        said = turn.problem.messages[-1].content
        yield f"  wrong {turn.problem.task} ({turn.effort.value}): {said!r}"
        decode = self._tokenizer.encoding.decode
        yield f"    expected {decode(self._writer.target(turn))!r}"
        yield f"    got      {decode(answer.written)!r}"

    def _judged(self, turn: Turn, written: list[int]) -> Answered:
        header, opening = self._writer.analysis_header, [END, *self._writer.opening]
        analysis: list[int] = []
        rest = written
        if written[: len(header)] == header and END in written:
            end = written.index(END)
            analysis, rest = written[len(header) : end], written[end:]
            rest = rest[len(opening) :] if rest[: len(opening)] == opening else []
        body = rest[len(turn.header) :]
        right = rest[: len(turn.header)] == turn.header and self._same(turn, body)
        return Answered(turn=turn, written=written, analysis_tokens=len(analysis), right=right)

    def _same(self, turn: Turn, body: list[int]) -> bool:
        stop = turn.body[-1]
        if not body or body[-1] != stop:
            return False
        got, want = (self._tokenizer.encoding.decode(b[:-1]) for b in (body, turn.body))
        if isinstance(turn.answer, Reply) and turn.answer.schema is None:
            return got.strip() == want.strip()
        try:
            return bool(json.loads(got) == json.loads(want))
        except ValueError:
            return False

    def _longest(self, turn: Turn) -> int:
        return len(turn.prompt_tokens) + len(self._writer.target(turn)) + LONGER

    @torch.no_grad()
    def _generate(self, model: TinyModel, turns: list[Turn]) -> list[list[int]]:
        """Greedy answers. Each step computes the unfinished texts anew, without a cache."""
        device = next(model.parameters()).device
        local = torch.from_numpy(self._vocabulary.local_ids().astype("int64"))
        prompts = [turn.prompt_tokens for turn in turns]
        longest = torch.tensor([self._longest(turn) for turn in turns], device=device)
        texts = torch.zeros(len(turns), int(longest.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            texts[row, : len(prompt)] = local[prompt]
        texts = texts.to(device)
        places = torch.tensor([len(prompt) for prompt in prompts], device=device)
        stops = local[[RETURN, CALL]].to(device)
        alive = torch.arange(len(turns), device=device)
        while len(alive):
            chosen = self._next(model, texts[alive], places[alive])
            texts[alive, places[alive]] = chosen
            places[alive] += 1
            alive = alive[~torch.isin(chosen, stops) & (places[alive] < longest[alive])]
        ids = [*self._vocabulary.token_ids.tolist(), UNSTORED_TOKEN]
        ended = zip(prompts, texts.tolist(), places.tolist(), strict=True)
        return [[ids[token] for token in row[len(prompt) : end]] for prompt, row, end in ended]

    def _next(self, model: TinyModel, texts: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        length = int(places.max())
        index = torch.arange(length, device=texts.device)
        rows = Rows(
            tokens=texts[:, :length],
            documents=(index < places[:, None]).long(),
            learned=torch.zeros_like(texts[:, :length], dtype=torch.bool),
        )
        hidden, _ = model(rows, plain=True)
        last = hidden[torch.arange(len(texts), device=texts.device), places - 1]
        return model.logits(last).argmax(-1)


def _share(right: Sequence[bool]) -> str:
    return f"{100 * sum(right) / max(len(right), 1):5.1f} %"
