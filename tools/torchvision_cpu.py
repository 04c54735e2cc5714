"""Makes torchvision importable beside a CPU-only torch; a part of `make setup`, not of the package.

PyPI's torchvision for Linux is built against CUDA, so its native library does not load where torch has none, and
`import torchvision` fails in `torchvision._meta_registrations` with "operator torchvision::nms does not exist".
Declaring the two operators named there, without an implementation, is enough for the transforms, the video processors
of the Qwen families and TRL; `torchvision.ops.nms` itself and the jpeg codecs stay unavailable.

Run as a script, this file copies itself into site-packages beside a one-line `.pth`, so that every interpreter of the
environment (accelerate ranks, vLLM workers) installs the import hook at its start. The hook costs nothing until
torchvision is imported, and does nothing if torch has a GPU build or torchvision's own library loads.
"""

import shutil
import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

#: The first module of torchvision that needs the operators.
HOOKED_MODULE = "torchvision._meta_registrations"
#: Operators whose fake kernels that module registers without asking whether they exist (torchvision 0.28).
OPERATORS = ("nms", "qnms")

#: torch forgets a library's operators once the object is collected.
_declared: list[Any] = []


def has_gpu_build(torch: Any) -> bool:
    """Return whether this torch was built for CUDA or ROCm."""
    return bool(torch.version.cuda or getattr(torch.version, "hip", None))


def declare_operators() -> None:
    """Declare those of `OPERATORS` that torchvision's native library has not declared, if torch is CPU-only."""
    import torch
    import torchvision.extension  # noqa: F401  (loads the native library with its operators, if it can)

    if has_gpu_build(torch):
        return
    missing = [operator for operator in OPERATORS if not hasattr(torch.ops.torchvision, operator)]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in missing:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


class DeclaringLoader(SourceFileLoader):
    """Declares the operators right before the module that needs them runs."""

    def exec_module(self, module: ModuleType) -> None:
        """Declare the operators, and run the module's code."""
        declare_operators()
        super().exec_module(module)


class TorchvisionFinder:
    """Finds `HOOKED_MODULE` as usual and gives it a `DeclaringLoader`; it finds no other module."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the usual spec with our loader; None for other modules, so that the next finder is tried."""
        if name != HOOKED_MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = DeclaringLoader(spec.loader.name, spec.loader.path)
        return spec


def install_hook() -> None:
    """Put the finder first in this interpreter; the `.pth` file calls this."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def install_into(site_packages: Path) -> None:
    """Copy this file into site-packages beside the `.pth` that starts it."""
    module = Path(__file__).resolve()
    shutil.copyfile(module, site_packages / module.name)
    (site_packages / f"{module.stem}.pth").write_text(f"import {module.stem}; {module.stem}.install_hook()\n")


def remove_from(site_packages: Path) -> None:
    """Remove an earlier installation, so that nothing of it is left when torch's build changes."""
    for suffix in (".py", ".pth"):
        (site_packages / f"{Path(__file__).stem}{suffix}").unlink(missing_ok=True)


def main() -> None:
    """Install the hook if torch is CPU-only, remove it otherwise, and print which."""
    import torch

    site_packages = Path(sysconfig.get_path("purelib"))
    if has_gpu_build(torch):
        remove_from(site_packages)
        print(f"GPU build of torch: {torch.__version__}, torchvision is used as it is")
    else:
        install_into(site_packages)
        print(f"CPU-only torch: {torch.__version__}, torchvision gets its missing operators declared")


if __name__ == "__main__":
    main()
