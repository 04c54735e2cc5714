import subprocess
import sys
from pathlib import Path

import pytest

from tools import torchvision_cpu

#: A stand-in for torch: an operator exists once it is defined, and defining it twice is an error, as in the real one.
FAKE_TORCH = """
import types
version = types.SimpleNamespace(cuda={cuda!r})
ops = types.SimpleNamespace(torchvision=types.SimpleNamespace())

class Library:
    def __init__(self, namespace, kind):
        assert (namespace, kind) == ("torchvision", "FRAGMENT")

    def define(self, schema):
        name = schema.split("(")[0]
        assert not hasattr(ops.torchvision, name), "defined twice"
        setattr(ops.torchvision, name, schema)

library = types.SimpleNamespace(Library=Library)
"""
NATIVE_LIBRARY_LOADS = "import torch\ntorch.ops.torchvision.nms = torch.ops.torchvision.qnms = 'native'\n"
NEEDS_OPERATORS = "import torch\nseen = {name: getattr(torch.ops.torchvision, name) for name in ('nms', 'qnms')}\n"


def import_torchvision(tmp_path: Path, *, cuda: str | None, extension: str = "") -> subprocess.CompletedProcess[str]:
    """Imports a stand-in torchvision, the hook installed, in an interpreter without site-packages."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(cuda=cuda))
    (tmp_path / "torchvision" / "__init__.py").write_text("from torchvision import extension, _meta_registrations\n")
    (tmp_path / "torchvision" / "extension.py").write_text(extension)
    (tmp_path / "torchvision" / "_meta_registrations.py").write_text(NEEDS_OPERATORS)
    torchvision_cpu.install_into(tmp_path)
    start_hook = (tmp_path / "torchvision_cpu.pth").read_text()
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{start_hook}"
    script += "assert 'torch' not in sys.modules, 'the hook imported torch at the start'\n"
    script += "import torchvision; print(torchvision._meta_registrations.seen)"
    return subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=280)


def test_operators_are_declared_where_the_native_library_does_not_load(tmp_path: Path) -> None:
    result = import_torchvision(tmp_path, cuda=None)
    assert result.returncode == 0, result.stderr
    assert "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in result.stdout
    assert "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in result.stdout


def test_operators_of_a_native_library_are_left_alone(tmp_path: Path) -> None:
    result = import_torchvision(tmp_path, cuda=None, extension=NATIVE_LIBRARY_LOADS)
    assert result.stdout.strip() == "{'nms': 'native', 'qnms': 'native'}", result.stderr


def test_nothing_is_declared_where_torch_has_cuda(tmp_path: Path) -> None:
    result = import_torchvision(tmp_path, cuda="13.0")
    assert result.returncode != 0
    assert "AttributeError" in result.stderr  # torchvision's own error is seen, not hidden


def test_the_finder_leaves_other_modules_to_the_other_finders() -> None:
    assert torchvision_cpu.TorchvisionFinder.find_spec("torchvision") is None
    assert torchvision_cpu.TorchvisionFinder.find_spec("json") is None


def test_installing_the_hook_twice_leaves_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    torchvision_cpu.install_hook()
    torchvision_cpu.install_hook()
    assert len(sys.meta_path) == 1


def test_removing_takes_away_what_installing_left(tmp_path: Path) -> None:
    torchvision_cpu.install_into(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torchvision_cpu.pth", "torchvision_cpu.py"]
    torchvision_cpu.remove_from(tmp_path)
    assert list(tmp_path.iterdir()) == []
