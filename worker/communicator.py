"""How ranks exchange rows. The model needs two collectives; all ranks call them in one order.

Rows are padded to the same number on every rank, because collectives of uneven size fail. Sums are
exchanged, not reduced: a library's reduction adds in its own order, and the model's order is fixed.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # public, but not in its __all__
    PrefixStore,
    Store,
    TCPStore,
    Work,
)


class Communicator(Protocol):
    """One rank's end of its group."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather_rows(self, x: Tensor) -> Tensor:
        """Every rank's rows in rank order: x [R, H] to [size * R, H]."""
        ...

    def exchange_sums(self, sums: Tensor) -> Tensor:
        """This rank's rows of every rank's sums: sums [size * R, H] to [size, R, H]."""
        ...


@dataclass(frozen=True, slots=True)
class SingleRank:
    """A group of one."""

    rank: int = 0
    size: int = 1

    def gather_rows(self, x: Tensor) -> Tensor:
        return x

    def exchange_sums(self, sums: Tensor) -> Tensor:
        return sums[None]


class Backend(Protocol):
    """What is used of torch's ProcessGroupGloo and ProcessGroupNCCL; their stubs lack it."""

    def alltoall_base(
        self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int], /
    ) -> Work: ...


@dataclass(frozen=True, slots=True)
class TorchDistributed:
    """A group over torch.distributed, made by ``connect``.

    A lost or stuck peer raises RuntimeError, at the latest when the group's timeout has passed;
    the group is of no use afterwards.
    """

    rank: int
    size: int
    backend: Backend

    def gather_rows(self, x: Tensor) -> Tensor:
        # All-to-all of copies: the same bytes travel, and gloo needs half of its all-gather's time.
        return self._exchange(x.repeat(self.size, 1))

    def exchange_sums(self, sums: Tensor) -> Tensor:
        return self._exchange(sums.contiguous()).view(self.size, -1, sums.shape[-1])

    def _exchange(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self.backend.alltoall_base(out, x, [], []).wait()
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreServer:
    """Where the ranks of an engine meet. It serves as long as this object lives."""

    host: str
    port: int
    store: TCPStore


def host_store(host: str = "127.0.0.1") -> StoreServer:
    """Starts the store on a free port of ``host``, an address of this machine."""
    store = TCPStore(host, 0, None, True, wait_for_workers=False)
    return StoreServer(host=host, port=store.port, store=store)


def connect(
    *,
    rank: int,
    size: int,
    host: str,
    port: int,
    prefix: str,
    device: torch.device,
    timeout_s: float,
) -> Communicator:
    """Joins the group of ``size`` ranks that meet at the store on host:port.

    All ranks are on the machine whose address ``host`` is: gloo binds to it, so that no host name
    is looked up. ``prefix`` names this incarnation of the group and is never used twice on one
    store. Blocks until every rank is there; RuntimeError after ``timeout_s``. The same limit holds
    for each collective.
    """
    if size == 1:
        return SingleRank()
    timeout = timedelta(seconds=timeout_s)
    tcp = TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    store = PrefixStore(prefix, tcp)
    backend = (
        _nccl(store, rank, size, timeout)
        if device.type == "cuda"
        else _gloo(store, rank, size, timeout, host)
    )
    group = TorchDistributed(rank, size, backend)
    # NCCL connects at its first collective: a peer that cannot be reached shows here.
    group.gather_rows(torch.zeros(1, 1, device=device))
    return group


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, host: str) -> Backend:
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._threads = 2
    options._timeout = timeout
    return cast(Backend, ProcessGroupGloo(store, rank, size, options))


def _nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Backend:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return cast(Backend, ProcessGroupNCCL(store, rank, size, options))
