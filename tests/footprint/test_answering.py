"""What a model takes that answers and is not trained, at the sizes of the 7B."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.sampling import SamplingArguments
from aurora_rl.cli import main, parse_arguments
from aurora_rl.footprint import Clips, Footprint, Launch, estimate_answering
from aurora_rl.footprint.by_hand import estimate

EVALUATION = ["footprint", "evaluate", "--config", "recipes/ref_avs/evaluate.yaml", "--model", "docs/configs/sft_7b"]
#: What a GPU of 24 GB has, less the 10 % that docs/scaling.md says are to be left free.
GPU_24 = 0.9 * 24e9


def answering(recipe: str, batch_size: int | None = None) -> Footprint:
    """The estimate of a recipe, which is evaluation's or of the kind that collects mistakes."""
    content = yaml.safe_load(Path(recipe).read_text())
    data_args = DataArguments(content["data_root"], max_pixels=content["max_pixels"])
    return estimate_answering(
        ModelArguments("docs/configs/sft_7b", dtype=content["dtype"]),
        data_args,
        SamplingArguments(
            batch_size=batch_size or content["batch_size"], max_completion_length=content["max_completion_length"]
        ),
        launch=Launch(),
        clips=Clips.assumed(data_args),
    )


def part(footprint: Footprint, name: str) -> int:
    return sum(p.num_bytes for p in footprint.device if p.name.startswith(name))


@pytest.mark.parametrize("recipe", ["recipes/ref_avs/evaluate.yaml", "recipes/ref_avs/mistakes_7b.yaml"])
def test_recipes_for_one_gpu_of_24_gb_fit_it(recipe: str) -> None:
    assert "one GPU of 24 GB" in Path(recipe).read_text()
    assert answering(recipe).peak == pytest.approx(21.0e9, rel=0.01)  # as its comment says
    assert answering(recipe).peak < GPU_24
    assert answering(recipe, 16).peak > 26e9 > 24e9  # control: what mistakes_7b.yaml once had
    assert 23e9 < answering(recipe, 8).peak < 0.9 * 32e9


def test_answers_by_hand() -> None:
    """28 layers with keys and values of 4 heads, 128 wide, in bfloat16; 1,703 + 512 tokens; 10 frames of 1280 x 720."""
    footprint = answering("recipes/ref_avs/evaluate.yaml")
    assert part(footprint, "key-value cache") == 2 * 2215 * (2 * 28 * 4 * 128 * 2)
    # 8.95 B weights of the thinker and the mask head in bfloat16, and 1.11 B copies that the adapter holds
    assert part(footprint, "weights: ") == pytest.approx(2 * (8.95e9 + 1.11e9), rel=0.01)
    assert footprint.work.clips == 2  # none is shared, at worst
    # above the logits at the frames' own size in float32, and their embeddings
    assert part(footprint, "masks of the answers") > 2 * 10 * (720 * 1280 + 256 * 64 * 64) * 4
    longer = part(footprint, "pass for the masks") / part(footprint, "prefill")
    assert longer == pytest.approx(2215 / 1703, rel=0.02)  # no keys and values are kept by then
    assert footprint.flops.training == footprint.flops.recomputing == 0 < footprint.flops.scoring


def test_vllm_takes_its_share_beside_the_model() -> None:
    def by_vllm(**options: object) -> Footprint:
        data_args = DataArguments("data", max_pixels=200704)
        return estimate_answering(
            ModelArguments("docs/configs/sft_7b", dtype="bfloat16"),
            data_args,
            SamplingArguments(use_vllm=True, batch_size=2, **options),
            launch=Launch(),
            clips=Clips.assumed(data_args),
            device_memory=80_000_000_000,
        )

    plain, shared = answering("recipes/ref_avs/evaluate.yaml"), by_vllm(vllm_gpu_memory_utilization=0.5)
    assert part(shared, "vLLM") == 40_000_000_000
    assert part(shared, "key-value cache") == part(shared, "prefill") == 0 < part(shared, "pass for the masks")
    assert part(shared, "pass for the masks") == part(plain, "pass for the masks")
    assert part(by_vllm(vllm_engine_kwargs={"kv_cache_memory_bytes": 1000}), "vLLM: its key-value cache") == 1000


def test_the_command_knows_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    footprint, limits = estimate(parse_arguments([*EVALUATION, "--gpu_memory_gb", "24"]))
    assert footprint.peak < GPU_24 and limits.device == 24 * 10**9
    assert main([*EVALUATION, "--gpu_memory_gb", "24", "--batch_size", "16"]) == 1
    assert "pass for the masks" in capsys.readouterr().out


def test_recipes_of_questions_fit_what_their_pages_say_and_count_ten_seconds_of_sound() -> None:
    page = Path("docs/echoink.md").read_text()
    (of_page,) = re.findall(r"^aurora-rl (footprint grpo [^`]*)", page, re.MULTILINE)
    of_evaluation = "footprint evaluate --config recipes/avqa/evaluate.yaml --model docs/configs/qwen2_5_omni_7b"
    trained, answering = (
        estimate(parse_arguments(shlex.split(command.replace("\\\n", " "))))[0] for command in (of_page, of_evaluation)
    )
    assert f"It says {trained.peak / 1e9:.1f} GB of each of 8 GPUs" in page
    assert answering.peak < GPU_24 and "one GPU of 24 GB" in Path("recipes/avqa/evaluate.yaml").read_text()
    for work in (trained.work, answering.work):
        assert work.head is None and work.prompt_tokens > 512 + 250  # the picture, and 25 tokens a second
