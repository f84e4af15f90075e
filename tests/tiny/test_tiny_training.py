"""The training code at toy sizes: what it learns from, its maths, and what it hands on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from moeray.cluster.generation import GenerationRequest, SamplingParams
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.tiny.splits import Split
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.kernels.reference import dequantize_mxfp4
from moeray.vocabulary.harmony_tokens import CALL, RETURN
from moeray.worker.checkpoint_make import make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointShape
from moeray.worker.trained_weights import TrainedWeights
from tests.tiny import toy_problems
from tests.tiny.batches import BLOCK_ROWS, ROW_TOKENS, Block, Packer, Workers, blocks, filled_row
from tests.tiny.check import HeldOutCheck
from tests.tiny.model import ModelOptions, Rows, TinyModel
from tests.tiny.mxfp4 import fake_quantise_mxfp4, pack_mxfp4, quantised_mxfp4
from tests.tiny.optimiser import OptimiserOptions, Schedule
from tests.tiny.packaged import export, load_packaged, packaged_vocabulary
from tests.tiny.problem_sources import problem_source
from tests.tiny.replay import ReplayBuffer
from tests.tiny.samples import EFFORTS, UNSTORED_TOKEN, Sample, SampleWriter
from tests.tiny.trainer import STATE_FILE, Trainer
from tests.tiny.vocabulary import Vocabulary, vocabulary_of
from tests.worker.paged_run import PagedRun

SHAPE = CheckpointShape(
    layers=3,
    experts=16,
    hidden_size=64,
    intermediate_size=32,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary_size=480,
)
STORED = 60
EXACT = ModelOptions(dtype=torch.float32, compiled=False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer.load()


def random_rows(lengths: Sequence[int], *, rows: int = 2, seed: int = 0, tokens: int = 96) -> Rows:
    random = torch.Generator().manual_seed(seed)
    documents = torch.zeros(rows, tokens, dtype=torch.int64)
    place = 0
    for number, length in enumerate(lengths, start=1):
        documents[:, place : place + length] = number
        place += length
    return Rows(
        tokens=torch.randint(STORED, (rows, tokens), generator=random),
        documents=documents,
        learned=(torch.rand(rows, tokens, generator=random) < 0.5) & (documents > 0),
    )


def loud_model(shape: CheckpointShape = SHAPE) -> TinyModel:
    """Every part moves the logits."""
    model = TinyModel(shape, STORED, EXACT)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if name in ("unembed", "sinks", "o", "down") else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


@pytest.mark.parametrize("source", ["toy", "trained"])
def test_prompts_are_those_of_the_gateway(source: str, tokenizer: HarmonyTokenizer) -> None:
    writer, renderer = SampleWriter(tokenizer), HarmonyRenderer(tokenizer)
    for problem in islice(problem_source(source)(5), 60):
        for effort in EFFORTS:
            request = GenerationRequest(
                model="",
                messages=problem.messages,
                tools=problem.tools,
                reasoning_effort=effort,
                sampling=SamplingParams(seed=0),
                current_date=problem.current_date,
            )
            first = next(writer.turns(problem, effort))
            assert first.prompt_tokens == renderer.render(request)


@pytest.mark.parametrize("source", ["toy", "trained"])
def test_a_reply_after_a_call_sees_what_the_gateway_shows_it(
    source: str, tokenizer: HarmonyTokenizer
) -> None:
    from tests.tiny.samples import _called

    writer, renderer = SampleWriter(tokenizer), HarmonyRenderer(tokenizer)
    drawn = (p for p in problem_source(source)(6) if p.call is not None)
    for problem in islice(drawn, 30):
        for effort in EFFORTS:
            called, replied = writer.turns(problem, effort)
            arguments = tokenizer.encoding.decode(called.body[:-1])
            assert problem.call is not None
            messages = _called(problem.call, arguments, problem.call.thinking.at(effort))
            request = GenerationRequest(
                model="",
                messages=(*problem.messages, *messages),
                tools=problem.tools,
                reasoning_effort=effort,
                sampling=SamplingParams(seed=0),
                current_date=problem.current_date,
            )
            assert replied.prompt_tokens == renderer.render(request)


def test_what_is_learned_is_the_answer_as_it_would_be_generated(
    tokenizer: HarmonyTokenizer,
) -> None:
    writer = SampleWriter(tokenizer)
    decode = tokenizer.encoding.decode
    problem = next(p for p in toy_problems.problems(Split.TRAIN, 0) if p.call is not None)
    for effort, thought in zip(EFFORTS, (False, True, True), strict=True):
        called, replied = (writer.whole(turn) for turn in writer.turns(problem, effort))
        for sample, end in ((called, CALL), (replied, RETURN)):
            learned = [t for t, on in zip(sample.tokens, sample.learned, strict=True) if on]
            assert sample.tokens[-len(learned) :] == learned
            assert learned[-1] == end
            text = decode(learned)
            assert text.startswith("<|channel|>analysis<|message|>") is thought
        assert " to=functions.set_light<|channel|>commentary <|constrain|>json" in decode(
            called.tokens[-60:]
        )


@pytest.mark.parametrize("length", [0, 3])
def test_a_cut_analysis_teaches_only_the_final_answer(
    length: int, tokenizer: HarmonyTokenizer
) -> None:
    writer = SampleWriter(tokenizer)
    problem = next(p for p in toy_problems.problems(Split.TRAIN, 0) if p.call is None)
    (turn,) = writer.turns(problem, EFFORTS[2])
    sample = writer.cut(turn, length)
    learned = [t for t, on in zip(sample.tokens, sample.learned, strict=True) if on]
    assert tokenizer.encoding.decode(learned) == problem.reply.final + "<|return|>"
    prompt, forced = len(turn.prompt_tokens), writer.final_header
    analysis = [*writer.analysis_header, *turn.analysis[:length]] if length else []
    assert sample.tokens[prompt : prompt + len(analysis)] == analysis
    before = len(sample.tokens) - len(learned)
    assert sample.tokens[before - len(forced) : before] == forced


def test_unknown_words_are_the_users_and_never_the_answers(tokenizer: HarmonyTokenizer) -> None:
    writer, random = SampleWriter(tokenizer), Random(1)
    changed = 0
    for problem in islice(toy_problems.problems(Split.TRAIN, 1), 3000):
        for sample in writer.samples(problem, EFFORTS[0], random):
            hidden = [i for i, token in enumerate(sample.tokens) if token == UNSTORED_TOKEN]
            changed += bool(hidden)
            assert not any(sample.learned[i] for i in hidden)
    assert 20 < changed < 120


def test_rows_hold_whole_samples_and_waste_little() -> None:
    random, packer = Random(0), Packer(row_tokens=100, open_rows=8)
    samples = [Sample([n + 1] * random.randint(10, 50), [True] * 0) for n in range(500)]
    samples = [replace(s, learned=[True] * len(s.tokens)) for s in samples]
    rows = [row for sample in samples if (row := packer.add(sample)) is not None]
    used = [sum(len(sample.tokens) for sample in row) for row in rows]
    assert max(used) <= 100
    assert np.mean(used) > 90
    tokens, marks = filled_row(rows[0], 100)
    for number, sample in enumerate(rows[0], start=1):
        assert tokens[marks >> 1 == number].tolist() == sample.tokens
    assert (marks[used[0] :] == 0).all()


def test_workers_give_the_blocks_of_their_seeds(tmp_path: Path) -> None:
    vocabulary = vocabulary_of("toy", problems=200, processes=1)
    vocabulary.save(tmp_path / "vocabulary.json")
    workers = Workers("toy", tmp_path / "vocabulary.json", count=1, seed=2)
    try:
        got = workers.next()
    finally:
        workers.close()
    want = next(blocks("toy", vocabulary, 2000))
    assert got.tokens.shape == (BLOCK_ROWS, ROW_TOKENS)
    assert (got.tokens == want.tokens).all()
    assert (got.marks == want.marks).all()
    assert got.samples == want.samples > BLOCK_ROWS
    buffer = ReplayBuffer(200, torch.device("cpu"), seed=0)
    buffer.add([got])
    buffer.add([got])
    rows = buffer.draw(8)
    known = {tuple(row) for row in got.tokens.tolist()}
    assert {tuple(row) for row in rows.tokens.tolist()} <= known
    assert rows.learned.any() and not (rows.learned & (rows.documents == 0)).any()


def test_dead_workers_are_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    workers = Workers("no such source", tmp_path / "none.json", count=1, seed=0)
    try:
        with pytest.raises(RuntimeError, match="every sample worker ended"):
            workers.next()
    finally:
        workers.close()


@pytest.mark.parametrize("spread", [1e-6, 0.1, 30.0])
def test_mxfp4_packs_exactly_what_training_used(spread: float) -> None:
    weight = torch.randn(5, 7, 96) * spread
    weight[0, 0, :32] = 0
    weight[0, 1, :32] = torch.linspace(-6, 6, 32)
    used = fake_quantise_mxfp4(weight)
    assert torch.equal(dequantize_mxfp4(*pack_mxfp4(weight), torch.float32), used)
    assert torch.equal(quantised_mxfp4(used), used)
    error = (used - weight).unflatten(-1, (-1, 32)).abs().amax(-1)
    assert (error <= weight.unflatten(-1, (-1, 32)).abs().amax(-1) / 4.9).all()
    weight.requires_grad_()
    fake_quantise_mxfp4(weight).sum().backward()
    assert weight.grad is not None and (weight.grad == 1).all()


def test_documents_of_a_row_do_not_hear_each_other() -> None:
    model, rows = loud_model(), random_rows([30, 20, 40])
    changed = replace(rows, tokens=rows.tokens.clone())
    changed.tokens[:, 30:50] = (changed.tokens[:, 30:50] + 1) % STORED
    before, after = (model.logits(model(r)[0]) for r in (rows, changed))
    second = rows.documents == 2
    assert torch.equal(before[~second], after[~second])
    assert not torch.isclose(before[second], after[second]).any(-1).all()
    alone = Rows(
        tokens=rows.tokens[:, 50:90],
        documents=rows.documents[:, 50:90],
        learned=rows.learned[:, 50:90],
    )
    torch.testing.assert_close(model.logits(model(alone)[0]), before[:, 50:90])


def test_the_worker_computes_the_logits_of_training(tmp_path: Path) -> None:
    model = loud_model()
    trainer = Trainer(model, OptimiserOptions(warmup_steps=1), total_steps=10)
    for seed in range(2):
        trainer.train(random_rows([96], seed=seed))
    ids = np.sort(np.random.default_rng(0).choice(480, STORED, replace=False)).astype(np.int32)
    packaged = tmp_path / "weights.safetensors"
    export(model, Vocabulary(ids), packaged)
    make_checkpoint(
        tmp_path / "checkpoint",
        TrainedWeights.open(packaged, SHAPE),
        write_tokenizer=lambda file: file.write_text("{}"),
    )
    # Longer than the window, so that both kinds of layer show.
    rows = random_rows([200], rows=1, tokens=200)
    rows.tokens[0, 7] = STORED
    local = [*ids.tolist(), int(np.setdiff1d(np.arange(480), ids)[0])]
    text = [local[token] for token in rows.tokens[0].tolist()]
    run = PagedRun(tmp_path / "checkpoint")
    with torch.no_grad():
        want = model.logits(model(rows)[0])[0]
    for length in (1, 60, 200):
        got = run.step({f"of {length}": text[:length]})[f"of {length}"]
        torch.testing.assert_close(got[local], want[length - 1], atol=1e-4, rtol=1e-4)
    # And training that starts from the packaged file computes them too.
    started = TinyModel(SHAPE, STORED, EXACT)
    load_packaged(started, packaged)
    with torch.no_grad():
        torch.testing.assert_close(started.logits(started(rows)[0])[0], want)
    assert (packaged_vocabulary(packaged).token_ids == ids).all()


def test_eight_samples_are_learned_by_heart(tokenizer: HarmonyTokenizer) -> None:
    writer = SampleWriter(tokenizer)
    drawn = islice(toy_problems.problems(Split.TRAIN, 3), 8)
    samples = [writer.whole(next(writer.turns(p, EFFORTS[1]))) for p in drawn]
    vocabulary = Vocabulary(np.array(sorted({t for s in samples for t in s.tokens}), np.int32))
    rows = [filled_row([sample], 256) for sample in samples]
    tokens = torch.from_numpy(
        vocabulary.local_ids().astype("int64")[np.stack([r for r, _ in rows])]
    )
    marks = torch.from_numpy(np.stack([m for _, m in rows]))
    shortest = int((marks > 0).any(0).nonzero().max()) + 1
    batch = Rows(
        tokens=tokens[:, :shortest],
        documents=(marks >> 1).long()[:, :shortest],
        learned=(marks % 2 > 0)[:, :shortest],
    )
    shape = replace(SHAPE, layers=2, experts=8, vocabulary_size=201088)
    model = TinyModel(shape, vocabulary.stored, EXACT)
    trainer = Trainer(model, OptimiserOptions(warmup_steps=10), total_steps=120)
    losses = [trainer.train(batch) for _ in range(120)]
    assert losses[0].answers > 5
    assert losses[-1].answers < 0.1
    # And what has no row of its own is far away.
    hidden, _ = model(batch)
    logits = model.logits(hidden)[batch.documents > 0]
    unstored = logits[:, -1] + math.log(201088 - vocabulary.stored)
    assert (unstored - logits[:, :-1].logsumexp(-1)).mean() < -10


@pytest.mark.parametrize("whole", [True, False])
def test_a_resumed_run_goes_on(tmp_path: Path, whole: bool) -> None:
    def fresh() -> Trainer:
        torch.manual_seed(4)
        return Trainer(TinyModel(SHAPE, STORED, EXACT), OptimiserOptions(), total_steps=1000)

    data = [random_rows([50, 40], seed=seed) for seed in range(6)]
    uninterrupted = fresh()
    wanted = [uninterrupted.train(rows).total.item() for rows in data]
    first = fresh()
    for rows in data[:3]:
        first.train(rows)
    first.save(tmp_path)
    if not whole:
        (tmp_path / STATE_FILE).unlink()
    torch.manual_seed(5)
    second = Trainer(TinyModel(SHAPE, STORED, EXACT), OptimiserOptions(), total_steps=1)
    second.resume(tmp_path, total_steps=None)
    assert (second.step, second.run, second.schedule.total_steps) == (3, 1, 1000)
    got = [second.train(rows).total.item() for rows in data[3:]]
    assert got[0] == pytest.approx(wanted[3], rel=1e-6)
    if whole:
        assert got == pytest.approx(wanted[3:], rel=1e-6)


def test_the_rate_rises_stays_and_falls() -> None:
    options = OptimiserOptions(warmup_steps=10, rewarmup_steps=5, decay_share=0.5)
    factor: Callable[[int], float] = Schedule(options=options, total_steps=100).factor
    assert [factor(s) for s in (0, 9, 30, 50, 75, 100)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0])
    restarted = Schedule(options=options, total_steps=100, restarted_at=40)
    assert [restarted.factor(s) for s in (40, 44, 60, 75)] == pytest.approx([0.2, 1, 0.8, 0.5])


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = Trainer(TinyModel(SHAPE, STORED, EXACT), OptimiserOptions(), total_steps=1)
    with torch.no_grad():
        trainer.model.o[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite: o"):
        trainer.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_check_takes_right_turns_for_right(tokenizer: HarmonyTokenizer) -> None:
    vocabulary = vocabulary_of("toy", problems=200, processes=1)
    check = HeldOutCheck("toy", vocabulary, problems=4)
    writer = SampleWriter(tokenizer)
    for problem in islice(toy_problems.problems(Split.HELD_OUT, 0), 4):
        for effort in EFFORTS:
            for turn in writer.turns(problem, effort):
                right = writer.target(turn)
                judged = check._judged(turn, right)
                assert judged.right and judged.analysis_tokens == len(turn.analysis)
                assert not check._judged(turn, right[:-1]).right
                assert not check._judged(turn, right[1:]).right
                assert not check._judged(turn, [*right[:-2], right[-2] + 1, right[-1]]).right


def test_the_check_runs_and_reports() -> None:
    vocabulary = vocabulary_of("toy", problems=200, processes=1)
    shape = replace(SHAPE, layers=1, vocabulary_size=201088)
    model = TinyModel(shape, vocabulary.stored, EXACT)
    check = HeldOutCheck("toy", vocabulary, problems=1)
    lines = list(check.report(check.run(model)))
    assert any(line.startswith(("  sum ", "  light ")) for line in lines)
    assert any("expected" in line for line in lines)


def test_blocks_travel_as_bytes() -> None:
    tokens = np.arange(BLOCK_ROWS * ROW_TOKENS, dtype=np.uint16).reshape(BLOCK_ROWS, ROW_TOKENS)
    block = Block(
        tokens=tokens, marks=(tokens % 251).astype(np.uint8), samples=5, dropped=6, unstored=7
    )
    again = Block.from_bytes(block.to_bytes())
    assert (again.samples, again.dropped, again.unstored) == (5, 6, 7)
    assert (again.tokens == block.tokens).all() and (again.marks == block.marks).all()
