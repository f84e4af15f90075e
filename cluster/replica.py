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
import os
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

from moeray.cluster.autoscaling import EngineStats
from moeray.cluster.catalogue import ServedModel
from moeray.cluster.config import Settings
from moeray.cluster.contracts import (
    ROUTER_NAME,
    ROUTER_NAMESPACE,
    EngineInfo,
    EngineLoad,
    RouterStats,
)
from moeray.cluster.engine_metrics import EngineMetrics
from moeray.cluster.engine_reports import EngineReports
from moeray.cluster.engine_spec import EngineSpec, ModelFacts
from moeray.cluster.logs import configure_logs
from moeray.cluster.metrics_reporter import ReportedMetrics, all_targets
from moeray.cluster.metrics_server import MetricsOptions, MetricsPages
from moeray.cluster.ray_router import RayEngineRouter
from moeray.cluster.router_client import RouterUnreachable
from moeray.cluster.tokenizer import resolve_ranks
from moeray.vocabulary.harmony_tokens import VOCABULARY_SIZE
from moeray.vocabulary.o200k import VocabularyError, load_ranks
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.config import EngineConfig
from moeray.worker.embedded import ensure_embedded
from moeray.worker.engine import Engine
from moeray.worker.engine_thread import EngineThread
from moeray.worker.kv_plan import KvPlan
from moeray.worker.model_config import CheckpointError, ModelConfig
from moeray.worker.ranks import RankFailure, SocketRanks
from moeray.worker.service import serve_engine

LOOPBACK = "127.0.0.1"
_WATCH_PERIOD_S = 0.25
_LAST_ROWS_S = 0.25
"""How long the rows that end a lost group's requests have to leave."""
_SERVER_GRACE_S = 1.0
_ROUTER_STATS_TIMEOUT_S = 1.0

_log = structlog.get_logger()


class ModelRefused(Exception):
    """The checkpoint cannot be served; the message names the file and what was expected."""


def prepare_model(settings: Settings) -> ModelFacts:
    """Check the checkpoint, or make the embedded one, on this machine. Raises ModelRefused."""
    try:
        folder = model_folder(settings)
        sizes = Checkpoint.open(folder).config
        if sizes.vocabulary_size != VOCABULARY_SIZE:
            raise ModelRefused(
                f"{folder / 'config.json'}: vocab_size is {sizes.vocabulary_size},"
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
    return ModelFacts(
        name=name,
        path=folder,
        embedded=settings.model is None,
        context_length=sizes.context_length,
        vocabulary_size=sizes.vocabulary_size,
        sliding_window=sizes.sliding_window,
    )


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
        self._spec = spec
        self._engine_id = f"engine-{uuid.uuid4().hex[:12]}"
        configure_logs("engine", spec.settings.log_level, engine_id=self._engine_id)
        self._lost: str | None = None
        self._router = RayEngineRouter()
        self._router_stats: RouterStats | None = None
        actors = [_rank_actor(spec, rank) for rank in range(spec.ranks)]
        config = await asyncio.to_thread(_engine_config, spec)
        sizes = ModelConfig.read(config.model / "config.json")
        group = SocketRanks(
            spec.ranks,
            step_timeout_s=spec.settings.step_timeout_s,
            silence_s=spec.settings.rank_silence_s,
        )
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
            window_tokens=sizes.sliding_window,
        )
        self._metrics = self._serve_metrics()
        self._tasks = [
            asyncio.create_task(self._watch_ranks(group)),
            asyncio.create_task(self._report()),
        ]

    async def check_health(self) -> None:
        """Serve calls this; raising has the whole group replaced."""
        if reason := self._unhealthy():
            raise RuntimeError(reason)

    async def wake(self) -> None:
        """Gateways call this where requests wait and no engine runs: Serve then starts one."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve calls this where engines scale; see ``autoscaling.py``."""
        # While the router cannot be asked, what it said last stands.
        with contextlib.suppress(RouterUnreachable, TimeoutError):
            async with asyncio.timeout(_ROUTER_STATS_TIMEOUT_S):
                self._router_stats = await self._router.stats()
        router, load = self._router_stats, self._thread.load
        return EngineStats(
            requests=sum(load.running) + sum(load.waiting),
            places=self._info.ranks * self._info.max_running_per_rank,
            kv_usage=sum(load.used_blocks) / (self._info.ranks * self._info.blocks_per_rank),
            waiting_tokens=sum(load.waiting_tokens),
            queued_requests=router.waiting if router else 0,
            queued_tokens=router.waiting_prompt_tokens if router else 0,
        ).as_dict()

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
        if self._metrics is not None:
            await self._metrics.close()

    def _serve_metrics(self) -> ReportedMetrics | None:
        options = MetricsOptions.of(self._spec.settings)
        if options is None:
            return None
        metrics = EngineMetrics(self._info, lambda: self._thread.load)
        self._thread.on_step = metrics.step_s.observe
        pages = MetricsPages(metrics=metrics, unhealthy=self._unhealthy, targets=all_targets)
        return ReportedMetrics(
            options, pages, engine_id=self._engine_id, loopback=self._spec.loopback
        )

    def _unhealthy(self) -> str:
        return self._lost or self._thread.failed or ""

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

    async def _watch_ranks(self, group: SocketRanks) -> None:
        """A rank that ends or falls silent ends the group, also while no step is running."""
        while (reason := self._thread.failed) is None:
            done, _ = await asyncio.wait(
                self._runs, timeout=_WATCH_PERIOD_S, return_when=asyncio.FIRST_COMPLETED
            )
            if reason := _end_of(done) or _loss_in(group):
                break
        self._lost = f"a rank was lost: {reason}"
        _log.error("rank lost", engine_id=self._engine_id, error=reason)
        self._thread.stop()
        with contextlib.suppress(RayError, ValueError):
            await _router().deregister_engine.remote(self._engine_id)
        await asyncio.sleep(_LAST_ROWS_S)
        # Serve replaces a replica that is dead at once, an unhealthy one after three checks.
        os._exit(1)

    async def _report(self) -> None:
        """Keep the router informed until this engine is lost."""
        reports = EngineReports(self._info, self._router, self._thread, self._load)
        await reports.run(lambda: self._lost is None and self._thread.failed is None)

    def _load(self) -> EngineLoad:
        load = self._thread.load
        return EngineLoad(
            engine_id=self._engine_id,
            running=list(load.running),
            waiting=list(load.waiting),
            free_blocks=list(load.free_blocks),
            steps=load.steps,
        )


def _end_of(runs: set["asyncio.Future[Any]"]) -> str | None:
    """Why ranks ended, if any did."""
    return next((str(run.exception() or "it ended") for run in runs), None)


def _loss_in(group: SocketRanks) -> str | None:
    try:
        group.check()
    except RankFailure as failure:
        return str(failure)
    return None


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


def configured_model(spec: EngineSpec) -> ServedModel:
    """The model as its engines will register it: what gateways know while there is no engine."""
    config = _engine_config_at(spec, spec.model.path)
    plan = KvPlan.of(config, spec.model.context_length, spec.model.sliding_window)
    return ServedModel(
        name=spec.model.name,
        engines=0,
        ranks=spec.ranks,
        context_length=spec.model.context_length,
        vocabulary_size=spec.model.vocabulary_size,
        # Without the scratch block. The windowed pool never holds less than one sequence needs.
        max_sequence_tokens=min(
            spec.model.context_length, (plan.full_blocks - 1) * plan.block_tokens
        ),
        default_max_output_tokens=spec.default_max_output_tokens,
        block_tokens=config.block_tokens,
    )


def _engine_config(spec: EngineSpec) -> EngineConfig:
    # The path of the embedded model is this node's; that of a checkpoint is the same on all.
    return _engine_config_at(spec, model_folder(spec.settings))


def _engine_config_at(spec: EngineSpec, folder: Path) -> EngineConfig:
    settings = spec.settings
    return EngineConfig(
        model=folder,
        ranks=spec.ranks,
        device=spec.device,
        dtype=spec.dtype,
        block_tokens=settings.block_tokens,
        kv_tokens_per_rank=settings.kv_tokens_per_rank,
        max_running_per_rank=settings.max_running_per_rank,
        step_tokens_per_rank=settings.step_tokens_per_rank,
        threads_per_rank=settings.rank_threads,
    )
