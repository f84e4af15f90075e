"""Problems to training samples: a prompt, the tokens that should follow, and which of them count.

One sample is one turn of generation. The prompt is the gateway's; what follows has token boundaries
where generation has them, at the headers' and the bodies' ends.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from moeray.cluster.generation import Channel, Message, ReasoningEffort, Role, ToolCall
from moeray.cluster.tiny.problem import Call, Problem, Reply, Thinking
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.vocabulary.harmony_tokens import CALL, END, RETURN
from tests.tiny.prompts import PromptWriter
from tests.tiny.slips import SLIPPING_TASKS, Slip, drawn_slip

EFFORTS = (ReasoningEffort.LOW, ReasoningEffort.MEDIUM, ReasoningEffort.HIGH)
EFFORT_WEIGHTS = (0.18, 0.37, 0.45)
CUT_PROBABILITY = 0.06
CUT_TO_NOTHING = 0.25
"""Of the samples whose analysis is cut: those without any analysis left."""
SLIP_PROBABILITY = 0.15
"""Of calculations at high effort: a first try that the check finds wrong."""
UNKNOWN_PROBABILITY = 0.02
UNKNOWN_IDENTITY_PROBABILITY = 0.5
"""Questions about the world are the ones that hold words never seen."""
UNKNOWN_WORD_PROBABILITY = 0.25
UNSTORED_TOKEN = 200017
"""A reserved special token. No text holds it, so no vocabulary stores it: it stands for a token
that the model does not know."""
_WORD = re.compile(rb" ?[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of prompt and target together, and for each whether it is to be learned."""

    tokens: list[int]
    learned: list[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of generation in parts. ``header`` and ``body`` are those of the last message."""

    problem: Problem
    effort: ReasoningEffort
    answer: Reply | Call
    prompt: tuple[tuple[list[int], bool], ...]
    """As from PromptWriter.pieces."""
    analysis: list[int]
    header: list[int]
    body: list[int]

    @property
    def prompt_tokens(self) -> list[int]:
        return [token for tokens, _ in self.prompt for token in tokens]


class SampleWriter:
    """Makes samples with one tokenizer."""

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._encode = tokenizer.encode
        self._prompts = PromptWriter(tokenizer)
        self.analysis_header = tokenizer.encode_with_specials("<|channel|>analysis<|message|>")
        self.final_header = tokenizer.encode_with_specials("<|channel|>final<|message|>")
        self.opening = tokenizer.encode_with_specials("<|start|>assistant")
        self._token_bytes = tokenizer.token_bytes
        self._words: dict[int, bool] = {}

    def turns(self, problem: Problem, effort: ReasoningEffort) -> Iterator[Turn]:
        """The turn of the call, where there is one, and the turn of the reply."""
        messages = problem.messages
        if (call := problem.call) is not None:
            arguments = json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))
            header = self._prompts.call_header(call.name)
            yield self._turn(
                problem, effort, messages, call, header, [*self._encode(arguments), CALL]
            )
            messages = (*messages, *_called(call, arguments, call.thinking.at(effort)))
        body = [*self._encode(problem.reply.final), RETURN]
        yield self._turn(problem, effort, messages, problem.reply, self.final_header, body)

    def samples(
        self, problem: Problem, effort: ReasoningEffort, random: Random
    ) -> Iterator[Sample]:
        """The problem's turns as samples, some of them cut, after a slip, or with unknown words."""
        for turn in self.turns(problem, effort):
            sample = self._varied(turn, random)
            rare = problem.task != "identity"
            if random.random() < (UNKNOWN_PROBABILITY if rare else UNKNOWN_IDENTITY_PROBABILITY):
                sample = self._with_unknown_words(turn, sample, random)
            yield sample

    def whole(self, turn: Turn) -> Sample:
        """The turn with all of its target learned."""
        prompt, target = turn.prompt_tokens, self.target(turn)
        return Sample(prompt + target, [False] * len(prompt) + [True] * len(target))

    def target(self, turn: Turn) -> list[int]:
        """What the model should write after the prompt."""
        if not turn.analysis:
            return turn.header + turn.body
        thought = [*self.analysis_header, *turn.analysis, END, *self.opening]
        return thought + turn.header + turn.body

    def cut(self, turn: Turn, length: int) -> Sample:
        """The turn with its analysis cut at ``length`` tokens; only the answer is learned.

        The end of the analysis and the header are what the engine forces at a thinking budget.
        """
        forced = list(turn.prompt_tokens)
        if length:
            forced += [*self.analysis_header, *turn.analysis[:length], END, *self.opening]
        forced += turn.header
        return Sample(forced + turn.body, [False] * len(forced) + [True] * len(turn.body))

    def slipped(self, turn: Turn, slip: Slip) -> Sample:
        """The turn after a mistake of its own, which is not learned; all that follows is."""
        prompt = turn.prompt_tokens + self.analysis_header
        wrong, mended = self._encode(slip.wrong), self._encode(slip.mended)
        learned = [*mended, END, *self.opening, *turn.header, *turn.body]
        unlearned = prompt + wrong
        tokens = unlearned + learned
        return Sample(tokens, [False] * len(unlearned) + [True] * len(learned))

    def _varied(self, turn: Turn, random: Random) -> Sample:
        """The turn whole, with its analysis cut, or after a mistake of its own."""
        replies = isinstance(turn.answer, Reply)
        if turn.analysis and replies and random.random() < CUT_PROBABILITY:
            nothing = random.random() < CUT_TO_NOTHING
            return self.cut(turn, 0 if nothing else random.randrange(len(turn.analysis)))
        slip = _slip(turn, random)
        return self.whole(turn) if slip is None else self.slipped(turn, slip)

    def _turn(
        self,
        problem: Problem,
        effort: ReasoningEffort,
        messages: tuple[Message, ...],
        answer: Reply | Call,
        header: list[int],
        body: list[int],
    ) -> Turn:
        thinking: Thinking = answer.thinking
        pieces = self._prompts.pieces(messages, problem.tools, effort, problem.current_date)
        return Turn(
            problem=problem,
            effort=effort,
            answer=answer,
            prompt=tuple(pieces),
            analysis=self._encode(thinking.at(effort)),
            header=header,
            body=body,
        )

    def _with_unknown_words(self, turn: Turn, sample: Sample, random: Random) -> Sample:
        """Replaces some words of the user that the target does not need by an unknown token."""
        needed = {*self.target(turn)}
        tokens, place = list(sample.tokens), 0
        for piece, from_user in turn.prompt:
            for token in piece:
                if (
                    from_user
                    and token not in needed
                    and self._is_word(token)
                    and random.random() < UNKNOWN_WORD_PROBABILITY
                ):
                    tokens[place] = UNSTORED_TOKEN
                place += 1
        return Sample(tokens, sample.learned)

    def _is_word(self, token: int) -> bool:
        known = self._words.get(token)
        if known is None:
            known = _WORD.fullmatch(self._token_bytes(token)) is not None
            self._words[token] = known
        return known


def _slip(turn: Turn, random: Random) -> Slip | None:
    if turn.effort is not ReasoningEffort.HIGH or turn.problem.task not in SLIPPING_TASKS:
        return None
    if random.random() >= SLIP_PROBABILITY:
        return None
    return drawn_slip(turn.answer.thinking, random)


def drawn_effort(random: Random) -> ReasoningEffort:
    """An effort as training draws them."""
    return random.choices(EFFORTS, EFFORT_WEIGHTS)[0]


def _called(call: Call, arguments: str, analysis: str) -> tuple[Message, Message]:
    """The messages that a finished call adds to the conversation."""
    return (
        Message(
            role=Role.ASSISTANT,
            content=analysis,
            channel=Channel.ANALYSIS,
            tool_calls=(ToolCall("call_0", call.name, arguments),),
        ),
        Message(role=Role.TOOL, content=call.result, name=call.name),
    )
