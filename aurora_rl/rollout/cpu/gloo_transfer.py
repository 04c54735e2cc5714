"""Weights from the trainer to `vllm serve` over gloo, where there is no NCCL: vLLM's weight-transfer backend "gloo".

Both sides are here: `GlooGroup` is the connection, in which the trainer is rank 0 and vLLM's workers follow;
`plugin.register` registers `GlooWeightTransferEngine` in vLLM for `--weight-transfer-config '{"backend": "gloo"}'`.

    trainer                                          worker
    GlooGroup(rank=0)                                init_transfer_engine
    POST /start_weight_update                        start_weight_update
    POST /update_weights, meet, broadcast            receive_weights: every tensor, into memory
    POST /finish_weight_update                       finish_weight_update: into the model

An update is applied completely or not at all: when either side dies during one, the model keeps its weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

#: Seconds between two checks of a rank that waits for the others.
POLL_S = 0.002
CLOSED = "the connection for weights is closed: open it again by init_communicator"


class GlooGroup:
    """A separate gloo group; torch's default process group, which may be the trainer's, is not touched.

    A broadcast cannot be cancelled: closing the group waits until gloo gives up. So the ranks `meet` before the first
    broadcast, where waiting can end early, and a rank that fails later closes its group, which makes the others'
    broadcasts fail.

    Args:
        host: address of rank 0.
        port: port of rank 0's store; 0 lets rank 0 choose one.
        rank: number of this process; 0 sends, the others receive.
        world_size: number of ranks in the group.
        timeout_s: seconds that meeting and every broadcast may take.
    """

    def __init__(self, host: str, port: int, *, rank: int, world_size: int, timeout_s: float) -> None:
        self._rank, self._world_size, self._timeout_s = rank, world_size, timeout_s
        self._meetings = 0
        # torch has types for neither.
        self._group: Any = None
        self._store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, world_size, is_master=rank == 0, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
        )
        #: Port of rank 0's store, which the others connect to.
        self.port = self._store.port

    def join(self, check: Callable[[], object] = lambda: None) -> None:
        """Wait until every rank is here, and connect; `check` and errors as in `meet`."""
        self.meet(check)
        store = dist.PrefixStore("weights", self._store)  # type: ignore[attr-defined]
        self._group = dist.ProcessGroupGloo(store, self._rank, self._world_size, timedelta(seconds=self._timeout_s))

    def meet(self, check: Callable[[], object] = lambda: None) -> None:
        """Wait until every rank has called this method.

        Args:
            check: function that is called while waiting, and raises when waiting is in vain.

        Raises:
            TimeoutError: if not all ranks have come in time.
        """
        if self._store is None:
            raise ConnectionError(CLOSED)
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        present = self._store.add(key, 1)
        give_up = time.monotonic() + self._timeout_s
        while present < self._world_size:
            check()
            if time.monotonic() > give_up:
                raise TimeoutError(f"{present} of {self._world_size} processes have come within {self._timeout_s:g} s")
            time.sleep(POLL_S)
            present = self._store.add(key, 0)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send rank 0's tensor, or receive it in place.

        Args:
            tensor: contiguous tensor on the CPU, with the same shape and dtype on every rank.

        Raises:
            ConnectionError: if another rank has gone or takes too long.
        """
        if self._group is None:
            raise ConnectionError(CLOSED)
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        try:
            self._group.broadcast([tensor], options).wait()
        except RuntimeError as error:
            raise ConnectionError(f"the other side of the weights' connection has gone: {error}") from error

    def close(self) -> None:
        """Leave the group; the others' broadcasts fail at once."""
        self._group = self._store = None


@dataclasses.dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Address at which the trainer waits for the workers, and how long it waits."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclasses.dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """Names, dtypes and shapes of the tensors that follow, in their order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The worker's side of the transfer, inside vLLM."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: GlooGroup | None = None
        self._received: list[tuple[str, torch.Tensor]] = []

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Leave the group of an earlier trainer and join that of the current one."""
        self.shutdown()
        worker = self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
        self._group = GlooGroup(
            init_info.master_address,
            init_info.master_port,
            rank=init_info.rank_offset + worker,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )
        self._group.join()

    def start_weight_update(self) -> None:
        """Drop the tensors of an update that was interrupted."""
        self._received = []

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive an update; vLLM's method would wait for an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive the announced tensors into memory."""
        if self._group is None:
            raise ConnectionError(CLOSED)
        announced = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        try:
            self._group.meet()
            for name, dtype_name, shape in announced:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype_name), device="cpu")
                self._group.broadcast(tensor)
                self._received.append((name, tensor))
        except BaseException:
            self.shutdown()  # the trainer would wait for us
            raise

    def finish_weight_update(self) -> None:
        """Load the received tensors into the model."""
        received, self._received = self._received, []
        if received:
            load_received(self.model, received, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        self._received = []
        if self._group is not None:
            self._group.close()
        self._group = None


def load_received(model: nn.Module, weights: list[tuple[str, torch.Tensor]], model_config: Any) -> None:
    """Load the weights of whole layers into the parts of a vLLM model that they belong to.

    Kernels repack weights after loading, so the layout of layers must be restored before the next loading. vLLM does
    this for the whole model and warns about every layer without new weights, which would be all layers of the frozen
    towers.
    """
    parts = _parts(model, [name for name, _ in weights])
    for part in parts:
        initialize_layerwise_reload(part)
    try:
        model.load_weights(weights)  # type: ignore[operator]  # every vLLM model has it
    finally:
        for part in parts:
            finalize_layerwise_reload(part, model_config)


def _parts(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Return the model's children that weights of these names are loaded into."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    mapped = names if mapper is None else [mapper.map_name(name) for name in names]
    children = {name.split(".")[0] for name in mapped if name is not None}
    if not children <= dict(model.named_children()).keys():
        return [model]
    return [model.get_submodule(name) for name in sorted(children)]
