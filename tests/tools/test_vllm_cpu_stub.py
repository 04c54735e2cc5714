import importlib.metadata
from pathlib import Path

import pytest

from tools.vllm_cpu_stub import write_stub


def install(site_packages: Path, name: str, version: str) -> None:
    folder = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def version_of_vllm(site_packages: Path) -> list[str]:
    return [d.version for d in importlib.metadata.distributions(name="vllm", path=[str(site_packages)])]


def test_the_stub_has_the_version_of_vllm_cpu_marked_as_cpu(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.31.0")
    assert write_stub(tmp_path) == tmp_path / "vllm-0.31.0+cpu.dist-info"
    assert version_of_vllm(tmp_path) == ["0.31.0+cpu"]


def test_the_stub_of_an_older_vllm_cpu_is_replaced(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.31.0")
    install(tmp_path, "vllm", "0.30.0+cpu")
    write_stub(tmp_path)
    write_stub(tmp_path)
    assert version_of_vllm(tmp_path) == ["0.31.0+cpu"]


def test_vllm_itself_is_left_alone(tmp_path: Path) -> None:
    install(tmp_path, "vllm", "0.31.0")
    assert write_stub(tmp_path) is None
    assert version_of_vllm(tmp_path) == ["0.31.0"]


def test_without_vllm_cpu_there_is_nothing_to_stand_in_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="make vllm"):
        write_stub(tmp_path)
