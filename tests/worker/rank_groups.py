"""Real ranks over a small checkpoint, processes of their own where there are several, and an engine
over them for each case. What an earlier case left in their caches is unknown to the next.
"""

import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from moeray.worker.communicator import SingleRank, host_store
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.kv_plan import KvPlan
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks, RankGroup, SocketRanks
from moeray.worker.request import ChannelRules, EngineRequest, FinishReason
from moeray.worker.scheduler import Scheduler
from tests.worker.engine_fakes import FakeLegal
from tests.worker.paged_run import SMALL

WINDOW = 20
SHAPE = replace(SMALL, sliding_window=WINDOW)
SETTINGS = {
    "block_tokens": 8, "kv_tokens_per_rank": 1024, "max_running_per_rank": 8,
    "step_tokens_per_rank": 64,
}  # fmt: skip
RANK = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import torch
    from moeray.worker.communicator import connect
    from moeray.worker.config import EngineConfig
    from moeray.worker.rank import Rank

    model, rank, ranks, path, secret, port, settings = sys.argv[1:]
    device = torch.device("cpu")
    config = EngineConfig(model=Path(model), ranks=int(ranks), **json.loads(settings))
    communicator = connect(
        rank=int(rank), size=int(ranks), host="127.0.0.1", port=int(port), prefix="exact",
        device=device, timeout_s=120,
    )
    loaded = Rank.load(config, device=device, communicator=communicator)
    loaded.serve(path=path, secret=bytes.fromhex(secret))
    """
)

Answers = dict[int, tuple[int, ...]]


class TextOnly:
    """Any token may follow, until the limit."""

    def __init__(self, rules: ChannelRules, *, max_output_tokens: int) -> None:
        self._left = max_output_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self._left else FinishReason.LENGTH

    def legal(self) -> FakeLegal:
        return FakeLegal(True, ())

    def forced(self) -> tuple[int, ...]:
        return ()

    def accept(self, token: int) -> bool:
        self._left -= 1
        return self._left > 0


class Group:
    """Ranks that stay, and an engine over them for each case."""

    def __init__(self, model: Path, ranks: int, group: RankGroup) -> None:
        self.ranks = ranks
        self._model = model
        self._group = group

    def engine(self, **settings: int) -> Engine:
        config = EngineConfig(model=self._model, ranks=self.ranks, **{**SETTINGS, **settings})  # type: ignore[arg-type]
        kv = KvPlan.of(config, 4096, WINDOW)
        scheduler = Scheduler(config, kv, context_length=4096, new_automaton=TextOnly)
        return Engine(scheduler, self._group)

    def run(self, engine: Engine, requests: Sequence[EngineRequest]) -> tuple[Answers, Answers]:
        """The answers, and the tokens found in the cache, by the requests' numbers."""
        answers: Answers = {}
        cached: Answers = {}
        for each in requests:
            engine.submit(replace(each, rank=each.rank % self.ranks))
        while engine.busy:
            for row in engine.step():
                answers[row.key.key] = answers.get(row.key.key, ()) + row.token_ids
                if row.cached_tokens is not None:
                    cached[row.key.key] = (row.cached_tokens,)
            engine.scheduler.check_integrity()
        return answers, cached

    def alone(self, requests: Iterable[EngineRequest]) -> Answers:
        """The answers, each request with an engine to itself."""
        answers: Answers = {}
        for each in requests:
            answers |= self.run(self.engine(), [each])[0]
        return answers


@contextmanager
def running_group(model: Path, ranks: int) -> Iterator[Group]:
    """One rank in this process, or several in theirs."""
    if ranks == 1:
        config = EngineConfig(model=model, **SETTINGS)  # type: ignore[arg-type]
        rank = Rank.load(config, device=torch.device("cpu"), communicator=SingleRank())
        yield Group(model, 1, LocalRanks(rank))
        return
    store = host_store()
    # Machines of tests are busy with other things: slow is not dead.
    sockets = SocketRanks(ranks, step_timeout_s=120, silence_s=60)
    settings = str(SETTINGS).replace("'", '"')
    arguments = [str(ranks), sockets.path, sockets.secret.hex(), str(store.port), settings]
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(model), str(rank), *arguments])
        for rank in range(ranks)
    ]
    try:
        sockets.accept(timeout_s=120)
        yield Group(model, ranks, sockets)
    finally:
        sockets.close()
        for process in processes:
            process.kill()
            process.wait()
