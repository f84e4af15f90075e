"""One rank: a model, its KV cache, and the step that joins them."""

import torch

from moeray.worker.batch import Batch
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.communicator import Communicator
from moeray.worker.config import EngineConfig
from moeray.worker.kv_cache import KvCache
from moeray.worker.model import Model
from moeray.worker.plan import Drawn, RankPlan
from moeray.worker.rank_server import serve_rank
from moeray.worker.sampling import sample


def take_device(gpu_index: int | None) -> torch.device:
    """Makes this machine's GPU ``gpu_index`` this process's current device, or takes the CPU.

    Ranks see all GPUs of their machine. What is allocated or launched without a device named goes
    to the current one, so naming tensors' devices is not enough.
    """
    if gpu_index is None:
        return torch.device("cpu")
    device = torch.device("cuda", gpu_index)
    torch.cuda.set_device(device)
    return device


class Rank:
    """Runs plans on one device. All ranks of a group run every step, together."""

    def __init__(self, model: Model, kv: KvCache, device: torch.device) -> None:
        self._model = model
        self._kv = kv
        self._device = device

    @classmethod
    def load(
        cls, config: EngineConfig, *, device: torch.device, communicator: Communicator
    ) -> "Rank":
        """Reads this rank's weights and allocates its cache; sets this process's torch threads.

        Raises CheckpointError where the checkpoint is not what it should be.
        """
        torch.set_num_threads(config.threads_per_rank)
        dtype = getattr(torch, config.dtype)
        checkpoint = Checkpoint.open(config.model)
        model = Model.load(checkpoint, device=device, dtype=dtype, communicator=communicator)
        kv = KvCache.allocate(checkpoint.config, config, device, dtype)
        return cls(model, kv, device)

    @torch.inference_mode()
    def execute(self, plan: RankPlan) -> Drawn:
        """Runs one step; returns what was drawn for its K samples."""
        batch = Batch.from_plan(plan, self._kv.plan.block_tokens, self._device)
        return sample(self._model.forward(batch, self._kv), plan.samples)

    def serve(self, *, path: str, secret: bytes) -> None:
        """Runs the plans of the leader at the Unix socket ``path`` until it goes away."""
        serve_rank(self, rank=self._model.communicator.rank, path=path, secret=secret)
