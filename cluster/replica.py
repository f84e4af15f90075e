"""The engine's Serve deployment: a leader, and one actor for each expert-parallel rank.

One replica is one expert-parallel group. The leader holds the scheduler and every rank's block
pool and serves ``engine.proto``; its placement group keeps the ranks on its node. A rank that dies
ends the group: its requests fail with a reason, ``check_health`` raises, and Serve replaces the
replica with all its ranks.

The only module of ``cluster/`` that imports ``moeray.worker``; what needs torch is imported where
it runs, because drivers and leaders do without.
"""

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from moeray.cluster.config import Settings
from moeray.cluster.contracts import ROUTER_NAME, ROUTER_NAMESPACE, EngineInfo, EngineLoad
from moeray.cluster.engine_spec import EngineSpec, ModelFacts
from moeray.cluster.logs import configure_logs
from moeray.cluster.tokenizer import resolve_ranks
from moeray.vocabulary.harmony_tokens import VOCABULARY_SIZE
from moeray.vocabulary.o200k import VocabularyError, load_ranks
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.config import EngineConfig
from moeray.worker.embedded import ensure_embedded
from moeray.worker.engine import Engine
from moeray.worker.engine_thread import EngineThread
from moeray.worker.model_config import CheckpointError, ModelConfig
from moeray.worker.ranks import SocketRanks
from moeray.worker.service import serve_engine

LOOPBACK = "127.0.0.1"
_LOAD_PERIOD_S = 0.5
_SERVER_GRACE_S = 1.0

_log = structlog.get_logger()


class ModelRefused(Exception):
    """The checkpoint cannot be served; the message names the file and what was expected."""


def prepare_model(settings: Settings) -> ModelFacts:
    """Check the checkpoint, or make the embedded one, on this machine. Raises ModelRefused."""
    try:
        folder = model_folder(settings)
        vocabulary_size = Checkpoint.open(folder).config.vocabulary_size
        if vocabulary_size != VOCABULARY_SIZE:
            raise ModelRefused(
                f"{folder / 'config.json'}: vocab_size is {vocabulary_size},"
                f" expected {VOCABULARY_SIZE}"
            )
        if settings.model or settings.tokenizer_file:
            # The embedded model's is the packaged one. Gateways will load the same.
            load_ranks(
                *resolve_ranks(tokenizer_file=settings.tokenizer_file, checkpoint=settings.model)
            )
    except (CheckpointError, VocabularyError, OSError) as error:
        raise ModelRefused(str(error)) from error
    name = settings.model_name or (folder.name if settings.model else "moeray-embedded")
    return ModelFacts(name=name, path=folder, embedded=settings.model is None)


def model_folder(settings: Settings) -> Path:
    """The checkpoint's folder on this machine; the embedded one is made where it is not there."""
    return settings.model or ensure_embedded(settings.cache_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seat:
    """A rank's place in its group."""

    rank: int
    path: str
    """The leader's Unix socket."""
    secret: bytes
    store_port: int
    incarnation: str


class RankActor:
    """One expert-parallel rank in a process of its own."""

    def __init__(self, spec: EngineSpec) -> None:
        # Importing torch takes seconds: all ranks do it while the leader sets up.
        import moeray.worker.rank

        del moeray
        self._spec = spec

    def host_store(self) -> int:
        """Host the store where the ranks meet; returns its port on loopback."""
        from moeray.worker.communicator import host_store

        # Kept for the life of this process: the store ends with the object.
        self._store = host_store(LOOPBACK)
        return self._store.port

    def run(self, seat: _Seat) -> None:
        """Load this rank's weights and run the leader's plans until the leader goes away."""
        from moeray.worker.communicator import connect
        from moeray.worker.rank import Rank, take_device

        spec = self._spec
        config = _engine_config(spec)
        device = take_device(_gpu_index() if spec.device == "cuda" else None)
        communicator = connect(
            rank=seat.rank,
            size=spec.ranks,
            host=LOOPBACK,
            port=seat.store_port,
            prefix=seat.incarnation,
            device=device,
            timeout_s=spec.settings.step_timeout_s,
        )
        rank = Rank.load(config, device=device, communicator=communicator)
        rank.serve(path=seat.path, secret=seat.secret)


class EngineReplica:
    """The leader of one expert-parallel group."""

    # Serve awaits the constructor.
    async def __init__(self, spec: EngineSpec) -> None:  # type: ignore[misc]
        configure_logs()
        self._spec = spec
        self._engine_id = f"engine-{uuid.uuid4().hex[:12]}"
        self._lost: str | None = None
        actors = [_rank_actor(spec, rank) for rank in range(spec.ranks)]
        config = await asyncio.to_thread(_engine_config, spec)
        sizes = ModelConfig.read(config.model / "config.json")
        group = SocketRanks(spec.ranks, step_timeout_s=spec.settings.step_timeout_s)
        self._runs = await self._start_ranks(actors, group)
        engine = Engine.of(config, sizes, group)
        self._thread = EngineThread(engine)
        host = LOOPBACK if spec.loopback else ray.util.get_node_ip_address()
        self._server, port = await serve_engine(
            self._thread, spec.cluster_token, host=host, vocabulary_size=sizes.vocabulary_size
        )
        self._info = EngineInfo(
            engine_id=self._engine_id,
            address=f"{host}:{port}",
            model=spec.model.name,
            ranks=spec.ranks,
            context_length=sizes.context_length,
            vocabulary_size=sizes.vocabulary_size,
            max_sequence_tokens=engine.scheduler.max_sequence_tokens,
            default_max_output_tokens=spec.default_max_output_tokens,
            max_running_per_rank=config.max_running_per_rank,
            block_tokens=config.block_tokens,
            blocks_per_rank=engine.load().free_blocks[0],
        )
        self._tasks = [
            asyncio.create_task(self._watch_ranks()),
            asyncio.create_task(self._report()),
        ]

    async def check_health(self) -> None:
        """Serve calls this; raising has the whole group replaced."""
        if reason := self._lost or self._thread.failed:
            raise RuntimeError(reason)

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop: finish what runs, then let go."""
        if not hasattr(self, "_tasks"):  # __init__ did not get to its end
            return
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(RayError, ValueError):
            await _router().deregister_engine.remote(self._engine_id)
        self._thread.drain()
        settings = self._spec.settings
        if not await asyncio.to_thread(self._thread.join, settings.drain_timeout_s):
            self._thread.stop()
            await asyncio.to_thread(self._thread.join, settings.step_timeout_s)
        await self._server.stop(_SERVER_GRACE_S)

    async def _start_ranks(
        self, actors: list["ActorHandle[Any]"], group: SocketRanks
    ) -> list["asyncio.Future[Any]"]:
        """Have the ranks load and wait until all are connected; returns their runs."""
        store_port = await actors[0].host_store.remote()
        runs = [
            asyncio.ensure_future(
                actor.run.remote(
                    _Seat(
                        rank=rank,
                        path=group.path,
                        secret=group.secret,
                        store_port=store_port,
                        incarnation=self._engine_id,
                    )
                )
            )
            for rank, actor in enumerate(actors)
        ]
        self._actors = actors  # Ray ends an actor that nobody refers to.
        timeout_s = self._spec.settings.start_timeout_s
        accepted = asyncio.ensure_future(asyncio.to_thread(group.accept, timeout_s=timeout_s))
        done, _ = await asyncio.wait([accepted, *runs], return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            await ended  # a rank that ended while it loaded says why
        return runs

    async def _watch_ranks(self) -> None:
        """A rank that ends ends the group, also while no step is running."""
        done, _ = await asyncio.wait(self._runs, return_when=asyncio.FIRST_COMPLETED)
        error = next((run.exception() for run in done if run.exception()), None)
        self._lost = f"a rank was lost: {error or 'it ended'}"
        _log.error("rank lost", engine_id=self._engine_id, error=str(error))
        self._thread.stop()
        with contextlib.suppress(RayError, ValueError):
            await _router().deregister_engine.remote(self._engine_id)

    async def _report(self) -> None:
        """Tell the router the load; register where it does not know this engine (again)."""
        while self._lost is None and self._thread.failed is None:
            # A router that is restarting is called again in the next round.
            with contextlib.suppress(RayError, ValueError):
                router = _router()
                if not await router.report_load.remote(self._load()):
                    await router.register_engine.remote(self._info)
            await asyncio.sleep(_LOAD_PERIOD_S)

    def _load(self) -> EngineLoad:
        load = self._thread.load
        return EngineLoad(
            engine_id=self._engine_id,
            running=list(load.running),
            waiting=list(load.waiting),
            free_blocks=list(load.free_blocks),
            steps=load.steps,
        )


def placement_bundles(spec: EngineSpec) -> list[dict[str, float]]:
    """Resources of one engine: the leader's bundle, then one for each rank.

    CPU ranks ask for fractions: whole CPUs would never fit on a small machine, and torch's threads
    are set in the rank anyway.
    """
    rank = {"CPU": 0.1, "GPU": 1.0} if spec.device == "cuda" else {"CPU": 0.1}
    return [{"CPU": 0.1}, *(rank.copy() for _ in range(spec.ranks))]


def _rank_actor(spec: EngineSpec, rank: int) -> "ActorHandle[Any]":
    cuda = spec.device == "cuda"
    # With Ray's own masking every rank sees one GPU as number 0, and symmetric memory between
    # ranks fails ("overlapping devices"); so ranks see all and pick theirs.
    environment = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    group = get_current_placement_group()
    if group is None:
        raise RuntimeError("an engine runs inside the placement group that Serve makes for it")
    options: dict[str, Any] = {
        "num_cpus": 0.1,
        "num_gpus": 1 if cuda else 0,
        "max_restarts": 0,
        "runtime_env": environment if cuda else None,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=rank + 1
        ),
    }
    return cast(ActorHandle[Any], ray.remote(RankActor).options(**options).remote(spec))


def _gpu_index() -> int:
    (index,) = ray.get_gpu_ids()
    return int(index)


def _router() -> "ActorHandle[Any]":
    return ray.get_actor(ROUTER_NAME, namespace=ROUTER_NAMESPACE)


def _engine_config(spec: EngineSpec) -> EngineConfig:
    settings = spec.settings
    return EngineConfig(
        # The path of the embedded model is this node's; that of a checkpoint is the same on all.
        model=model_folder(settings),
        ranks=spec.ranks,
        device=spec.device,
        dtype=spec.dtype,
        block_tokens=settings.block_tokens,
        kv_tokens_per_rank=settings.kv_tokens_per_rank,
        max_running_per_rank=settings.max_running_per_rank,
        step_tokens_per_rank=settings.step_tokens_per_rank,
        threads_per_rank=settings.rank_threads,
    )
