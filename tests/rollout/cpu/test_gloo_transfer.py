"""Both ends of a gloo connection, in threads of one process: what is sent arrives, and nobody waits for ever."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

if "CI" not in os.environ:  # there, its absence is an error
    pytest.importorskip("vllm")
from torch import nn
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from aurora_rl.rollout import plugin
from aurora_rl.rollout.cpu.gloo_transfer import GlooGroup, GlooWeightTransferEngine, _parts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]


def connect(timeout_s: float = 20.0) -> tuple[GlooGroup, GlooGroup]:
    trainer = GlooGroup("127.0.0.1", 0, rank=0, world_size=2, timeout_s=timeout_s)
    worker = GlooGroup("127.0.0.1", trainer.port, rank=1, world_size=2, timeout_s=timeout_s)
    with ThreadPoolExecutor(2) as executor:
        for joined in [executor.submit(group.join) for group in (trainer, worker)]:
            joined.result()
    return trainer, worker


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_arrive_as_they_left_and_no_default_group_is_made(dtype):
    trainer, worker = connect()
    sent = [torch.randn(shape).to(dtype) for shape in ((3, 5), (1,), (1 << 20,), ())]
    received = [torch.zeros_like(tensor) for tensor in sent]
    with ThreadPoolExecutor(1) as executor:
        receiving = executor.submit(lambda: [worker.broadcast(tensor) for tensor in received])
        for tensor in sent:
            trainer.broadcast(tensor)
        receiving.result()
    for ours, theirs in zip(sent, received, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.distributed.is_initialized()
    trainer.close()
    worker.close()


def test_a_rank_that_never_comes_is_waited_for_in_vain_but_not_for_ever():
    trainer = GlooGroup("127.0.0.1", 0, rank=0, world_size=2, timeout_s=0.5)
    with pytest.raises(TimeoutError, match="1 of 2 processes have come within 0.5 s"):
        trainer.join()


def test_waiting_ends_when_it_is_known_to_be_in_vain():
    trainer, _ = connect(timeout_s=600)

    def check() -> None:
        raise LookupError("the server has failed")

    with pytest.raises(LookupError):
        trainer.meet(check)
    trainer.close()


@pytest.mark.parametrize(
    ("leave", "timeout_s"), [(GlooGroup.close, 600.0), (lambda group: None, 0.5)], ids=["gone", "silent"]
)
def test_a_broadcast_fails_when_the_other_side_is_gone_or_silent(leave, timeout_s):
    trainer, worker = connect(timeout_s)
    threading.Timer(0.2, leave, [trainer]).start()
    with pytest.raises(ConnectionError, match="has gone"):
        worker.broadcast(torch.empty(10))
    worker.close()


def test_a_closed_group_says_so():
    trainer, _ = connect()
    trainer.close()
    with pytest.raises(ConnectionError, match="open it again"):
        trainer.broadcast(torch.empty(1))


def test_the_plugin_makes_the_backend_known_however_often_it_is_loaded():
    plugin.register()
    plugin.register()
    assert WeightTransferEngineFactory._registry["gloo"]() is GlooWeightTransferEngine


def test_weights_touch_only_the_parts_they_belong_to():
    model = nn.ModuleDict({"visual": nn.Linear(1, 1), "language_model": nn.Linear(1, 1)})
    assert _parts(model, ["language_model.weight", "language_model.bias"]) == [model["language_model"]]
    assert _parts(model, ["visual.weight", "language_model.bias"]) == [model["language_model"], model["visual"]]
    assert _parts(model, ["another_name.weight"]) == [model]
