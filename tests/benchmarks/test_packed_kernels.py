"""The check of kernels on a GPU, as far as it goes on a CPU: at toy size, and with operators that are written out."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_rl.models.packed_attention import KERNELS
from benchmarks import packed_kernels
from benchmarks.packed_kernels import APART, LAYERS, attend_apart, cost_of, draw, layout_of, results
from tests.models.packed_attention.flash_on_cpu import flash_on_cpu


def test_it_runs_at_toy_size_and_refuses_the_real_one_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_kernels.main(["--size", "toy", "--repeats", "1", "--output", str(tmp_path / "out.json")])
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert list(numbers) == ["one length", "several lengths"]
    assert numbers["one length"]["chosen"] == "sdpa" and list(numbers["one length"]) == [APART, "sdpa", "chosen"]
    assert "| sdpa | " in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        packed_kernels.main([])
    assert "--size real needs a GPU" in capsys.readouterr().err


def test_a_wrong_kernel_and_one_that_refuses_end_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernels, "kernels_of", lambda *_: ["sdpa", "varlen"])
    right = KERNELS["sdpa"]

    def late(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Any, **options: Any) -> torch.Tensor:
        return right(query, key.roll(1, 2), value, layout, **options)

    monkeypatch.setitem(KERNELS, "sdpa", late)
    with pytest.raises(SystemExit) as raised:
        packed_kernels.main(["--size", "toy", "--repeats", "1"])
    told = str(raised.value.code)
    assert "sdpa, one length: differs too much" in told and "sdpa, several lengths: differs too much" in told
    assert "varlen, one length: NotImplementedError: Could not run 'aten::_flash_attention_forward'" in told


@pytest.mark.parametrize("title", LAYERS["toy"])
@pytest.mark.parametrize("name", KERNELS)
def test_right_kernels_are_found_right(name: str, title: str) -> None:
    layer, device = LAYERS["toy"][title], torch.device("cpu")
    layout = layout_of(layer, device)
    states, options = draw(layer, layout, device), {"layout": layout, "scaling": 0.3}
    apart = functools.partial(attend_apart, **options)
    truth = results(apart, states)
    with flash_on_cpu():
        cost = cost_of(functools.partial(KERNELS[name], **options), states, truth, 1)
    assert cost.is_right(cost_of(apart, states, truth, 1))


def test_on_a_gpu_all_kernels_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernels, "capability_of", lambda _: (9, 0))
    assert packed_kernels.kernels_of(LAYERS["real"]["one length"], torch.device("cuda")) == [*KERNELS]


@pytest.mark.gpu
def test_kernels_are_right_at_the_real_shapes(tmp_path: Path) -> None:
    packed_kernels.main(["--repeats", "3", "--output", str(tmp_path / "out.json")])
