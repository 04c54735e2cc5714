"""Kernels of attention over shared prompts on one GPU: parity with rows apart, seconds and memory of a layer.

    python benchmarks/packed_kernels.py                 (an NVIDIA GPU since Ampere: not measured)
    python benchmarks/packed_kernels.py --size toy      (a CPU, to check that it runs)

Attention alone, of a layer of Qwen2.5-Omni-7B in bf16: 28 heads and 4 of keys and values, 128 wide, a prompt of 2,400
tokens, 8 completions of 512; and completions of several lengths, of two prompts. Each kernel may differ from attention
in float32 twice as much as rows apart do in bf16, in its output and each gradient. The script ends with an error where
one differs more or refuses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from aurora_rl.assembly.options import OptionParser
from aurora_rl.models.packed_attention import KERNELS
from aurora_rl.models.packed_attention.choice import capability_of, choose_kernel, kernel_for
from aurora_rl.models.packed_layout import PackedLayout, pack
from benchmarks.memory import peak_memory
from benchmarks.tables import table
from benchmarks.timing import now

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
APART = "rows apart"
#: Times the difference of rows apart that a kernel may have, and what float32 adds.
ALLOWED, ROUNDING = 2.0, 2e-6
PARTS = ("output", "gradient of queries", "gradient of keys", "gradient of values")


@dataclasses.dataclass(frozen=True)
class Layer:
    """Sizes of an attention layer and of the groups that it reads.

    Attributes:
        heads: H, number of heads of queries.
        key_heads: Hkv, number of heads of keys and values.
        head_dim: d, width of a head.
        groups: the tokens of each prompt, and of each of its completions.
        dtype: dtype of queries, keys and values.
    """

    heads: int
    key_heads: int
    head_dim: int
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    dtype: torch.dtype


OF_7B = Layer(28, 4, 128, ((2400, (512,) * 8),), torch.bfloat16)
SEVERAL = ((2400, (512, 31, 200, 477, 3, 350, 128, 256)), (1600, (90, 512, 256, 17)))
TOY = Layer(4, 2, 8, ((12, (5,) * 3),), torch.float32)
LAYERS = {
    "real": {"one length": OF_7B, "several lengths": dataclasses.replace(OF_7B, groups=SEVERAL)},
    "toy": {"one length": TOY, "several lengths": dataclasses.replace(TOY, groups=((12, (5, 1)), (1, (3, 2))))},
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a way of attention costs and how far it is from float32.

    Attributes:
        forward: seconds of a pass without gradients, by the wall clock on a GPU, else of the processor.
        both: seconds of a forward and a backward pass.
        peak_gb: highest memory of a forward and a backward pass, without inputs.
        differences: relative norms of the differences of `PARTS`.
    """

    forward: float
    both: float
    peak_gb: float
    differences: tuple[float, ...]

    def is_right(self, apart: Cost) -> bool:
        """Tell whether no difference is above what rows apart allow; NaN is none."""
        pairs = zip(self.differences, apart.differences, strict=True)
        return all(own <= ALLOWED * theirs + ROUNDING for own, theirs in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table for each layer, and exit with an error if a kernel is wrong."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--size", choices=LAYERS, default="real", help="sizes of the layer and its groups")
    parser.add_argument("--repeats", type=int, default=20, help="number of passes that are measured, after two others")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    if args.size == "real" and not torch.cuda.is_available():
        parser.error("--size real needs a GPU, and torch sees none; --size toy runs on a CPU")
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: measure one pass or more")
    measured, wrong = {}, []
    for title, layer in LAYERS[args.size].items():
        costs, refusals, chosen = measure(layer, args.repeats)
        wrong += [f"{name}, {title}: {text}" for name, text in refusals.items()]
        wrong += [f"{name}, {title}: differs too much" for name in costs if not costs[name].is_right(costs[APART])]
        measured[title] = {name: dataclasses.asdict(cost) for name, cost in costs.items()} | {"chosen": chosen}
        print(f"\n### {title}, {layer}\n\n{costs_table(costs)}\n\nA run takes {chosen} here.", flush=True)
    if args.output:
        args.output.write_text(json.dumps(measured, indent=2) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


def measure(layer: Layer, repeats: int) -> tuple[dict[str, Cost], dict[str, str], str]:
    """Measure rows apart and each kernel of this device; return also what kernels refuse, and which one a run takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = layout_of(layer, device)
    states = draw(layer, layout, device)
    scaling = layer.head_dim**-0.5
    ways: dict[str, Attend] = {APART: functools.partial(attend_apart, layout=layout, scaling=scaling)}
    for name in kernels_of(layer, device):
        ways[name] = functools.partial(KERNELS[name], layout=layout, scaling=scaling)
    truth = results(ways[APART], [state.float() for state in states])
    costs, refusals = {}, {}
    for name, attend in ways.items():
        try:
            costs[name] = cost_of(attend, states, truth, repeats)
        except (RuntimeError, TypeError, ValueError) as error:
            refusals[name] = f"{type(error).__name__}: {error}"
    return costs, refusals, kernel_for(states[1], layout, 0.0)


def kernels_of(layer: Layer, device: torch.device) -> list[str]:
    """Return the kernels that may be chosen on this device."""
    chosen = [
        choose_kernel(
            capability=capability_of(device),
            dtype=layer.dtype,
            head_dim=layer.head_dim,
            dropout=0.0,
            copied_bytes=size,
        )
        for size in (0, sys.maxsize)
    ]
    return [*dict.fromkeys(["sdpa", *chosen])]


def layout_of(layer: Layer, device: torch.device) -> PackedLayout:
    """Lay out the groups as one row."""
    width = max(prompt for prompt, _ in layer.groups)
    length = max(max(completions) for _, completions in layer.groups)
    columns = torch.arange(-width, length)
    rows = [(number, group[0], size) for number, group in enumerate(layer.groups) for size in group[1]]
    mask = torch.stack([(columns >= -prompt) & (columns < size) for _, prompt, size in rows]).long().to(device)
    return pack(torch.zeros_like(mask), mask, length, [number for number, _, _ in rows])


def draw(layer: Layer, layout: PackedLayout, device: torch.device) -> list[Tensor]:
    """Draw query (1, H, N, d), key and value (1, Hkv, N, d)."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, heads, len(layout.source), layer.head_dim) for heads in (layer.heads, *[layer.key_heads] * 2)]
    return [torch.randn(size, generator=generator).to(device, layer.dtype) for size in sizes]


def attend_apart(query: Tensor, key: Tensor, value: Tensor, *, layout: PackedLayout, scaling: float) -> Tensor:
    """Attend over each row by itself, its prompt before it: what a kernel gives, (N, H, d), at the old price."""
    pieces = []
    for group in layout.groups:
        own_start = group.prompt.stop
        for number, length in enumerate(group.lengths):
            own = slice(own_start, own_start + length)
            q, k, v = (torch.cat([part[:, :, group.prompt], part[:, :, own]], dim=2) for part in (query, key, value))
            output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)[0]
            pieces.append(output if number == 0 else output[:, group.shared :])
            own_start = own.stop
    return torch.cat(pieces, dim=1).transpose(0, 1)


def results(attend: Attend, states: Sequence[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of query, key and value, for one random gradient of the output."""
    leaves = [state.detach().clone().requires_grad_() for state in states]
    output = attend(*leaves)
    arriving = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, arriving)]


def cost_of(attend: Attend, states: Sequence[Tensor], truth: Sequence[Tensor], repeats: int) -> Cost:
    """Measure a way of attention against the results in float32."""
    differences = tuple(
        ((found.float() - expected).norm() / expected.norm()).item()
        for found, expected in zip(results(attend, states), truth, strict=True)
    )
    leaves = [state.detach().clone().requires_grad_() for state in states]
    arriving = torch.randn_like(attend(*leaves))

    def forward() -> None:
        with torch.no_grad():
            attend(*leaves)

    def both() -> None:
        torch.autograd.grad(attend(*leaves), leaves, arriving)

    forward_seconds, both_seconds = seconds_of(forward, repeats), seconds_of(both, repeats)
    with peak_memory() as peak:
        both()
    return Cost(forward_seconds, both_seconds, peak.gigabytes, differences)


def seconds_of(work: Callable[[], None], repeats: int) -> float:
    """Return the median seconds of some work, after two rounds that warm up."""
    clock, spans = "wall" if torch.cuda.is_available() else "cpu", []
    for _ in range(repeats + 2):
        start = now()
        work()
        spans.append((now() - start).on(clock))
    return median(spans[2:])


def costs_table(costs: dict[str, Cost]) -> str:
    """Return the table of all ways."""
    rows = [
        (
            name,
            f"{1e3 * cost.forward:.3f}",
            f"{1e3 * cost.both:.3f}",
            f"{costs[APART].both / cost.both:.2f}",
            f"{cost.peak_gb:.3f}",
            *(f"{difference:.1e}" for difference in cost.differences),
        )
        for name, cost in costs.items()
    ]
    times = ("forward, ms", "and backward, ms", "times faster", "peak memory, GB")
    return table(("attention", *times, *(f"difference, {part}" for part in PARTS)), rows)


if __name__ == "__main__":
    main()
