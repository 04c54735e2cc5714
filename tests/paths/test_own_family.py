"""A family from outside the package, named by the option `family`: it trains, saves, loads, answers and is exported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.early import check_asked
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.export.hub_folder import HubExport, export_for_hub
from aurora_rl.export.model_card import CardDetails
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import build_meta_model
from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.loading import family_that_reads, load_model, read_segmenter_config
from aurora_rl.models.mllm import MLLM_FAMILIES, load_family
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.named.objects import name_of
from aurora_rl.rollout.export import export_checkpoint
from aurora_rl.scripts import grpo, init_tiny, sft
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig

FAMILY = '''
from transformers import Qwen2_5OmniThinkerConfig

from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni


class MyConfig(Qwen2_5OmniThinkerConfig):
    model_type = "my_omni"


class MyModel(AuroraQwen2_5Omni):
    config_class = MyConfig


class MyFamily(Qwen2_5OmniFamily):
    model_types = ("my_omni",)
    model_class = MyModel

    def build_tiny(self, texts, **options):
        model, processor = super().build_tiny(texts, **options)
        return MyModel(MyConfig(**model.config.to_dict())), processor


class Sketch(Qwen2_5OmniFamily.__mro__[1]):
    """Has nothing yet."""


NUMBER = 3
'''
QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(FAMILY)
    return f"{file}:MyFamily"


@pytest.fixture(scope="module")
def own_checkpoint(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny checkpoint under a model type that nothing here knows."""
    folder = tmp_path_factory.mktemp("own_checkpoint") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "my_omni", "architectures": ["MyModel"]}))
    return str(folder)


def test_it_trains_by_both_recipes_and_what_they_leave_loads_with_the_option_alone(
    own_checkpoint: str, family: str, data_args: DataArguments, tmp_path: Path
) -> None:
    sft_dir, grpo_dir = str(tmp_path / "sft"), str(tmp_path / "grpo")
    once = {**QUIET, "max_steps": 1, "save_strategy": "no"}
    start = ModelArguments(own_checkpoint, family=family, freeze=["towers"], use_peft=True, lora_r=2)
    sft.main(start, data_args, TargetArguments(), AuroraSFTConfig(sft_dir, per_device_train_batch_size=2, **once))
    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    args = AuroraGRPOConfig(grpo_dir, beta=0.1, **sizes, **once)
    grpo.main(ModelArguments(sft_dir, family=family, freeze=["towers"]), data_args, grpo.RewardArguments(), args)
    assert json.loads(Path(grpo_dir, "trainer_state.json").read_text())["global_step"] == 1
    again = load_model(grpo_dir, family=family)
    assert type(again.family).__name__ == "MyFamily" and again.model.get_base_model().config.model_type == "my_omni"
    with pytest.raises(ValueError, match=r"no family for model_type 'my_omni'.*option `family`"):
        load_model(grpo_dir)


def test_whoever_opens_its_checkpoint_takes_the_option(own_checkpoint: str, family: str, tmp_path: Path) -> None:
    args = ModelArguments(own_checkpoint, family=family)
    assert read_segmenter_config(own_checkpoint, None, family=family)["type"] == "dot"
    assert type(build_meta_model(args, Launch()).family).__name__ == "MyFamily"
    answering = AuroraPipeline(own_checkpoint, family=family, clip_options=ClipOptions(fps=1.0, num_frames=2))
    hub = export_for_hub(own_checkpoint, tmp_path / "hub", HubExport(family=family), CardDetails("mine"))
    engine = export_checkpoint(own_checkpoint, tmp_path / "engine", family=family)
    assert type(answering.loaded.family).__name__ == "MyFamily"
    assert json.loads((hub / "config.json").read_text())["model_type"] == "my_omni"
    assert 'AuroraPipeline("mine", family="module_or_file:MyFamily")' in (hub / "README.md").read_text()
    fields = json.loads((engine / "config.json").read_text())["thinker_config"]
    assert fields["text_config"]["tie_word_embeddings"] is False and "segmenter" not in fields


def test_a_teacher_may_be_of_another_family(own_checkpoint: str, tiny_checkpoint: str, family: str) -> None:
    assert type(family_that_reads(own_checkpoint, family)).__name__ == "MyFamily"
    assert type(family_that_reads(tiny_checkpoint, family)) is Qwen2_5OmniFamily
    with pytest.raises(
        ValueError, match=r"has model_type 'qwen2_5_omni_thinker', but the family MyFamily reads my_omni"
    ):
        load_model(tiny_checkpoint, family=family)


def test_it_makes_a_tiny_model_of_its_own(family: str, data_args: DataArguments, tmp_path: Path) -> None:
    init_tiny.main(data_args, init_tiny.InitArguments(str(tmp_path), family=family, tiny={"num_layers": 1}))
    loaded = load_model(str(tmp_path), family=family)
    assert loaded.model.config.model_type == "my_omni"
    with pytest.raises(ValueError, match="no size 'num_layer'.*num_layers"):
        init_tiny.main(data_args, init_tiny.InitArguments(str(tmp_path), tiny={"num_layer": 1}))


def test_it_has_a_name_by_which_another_process_finds_it(family: str) -> None:
    assert name_of(type(load_family(family))) == family


def test_what_is_no_family_is_refused(family: str) -> None:
    file = family.removesuffix(":MyFamily")
    for name, message in (
        ("NUMBER", "is no family"),
        ("Sketch", "lacks model_class"),
        ("Mine", "has no 'Mine'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_family(f"{file}:{name}")
    with pytest.raises(ValueError, match=f"choose from {', '.join(MLLM_FAMILIES)}"):
        load_family("my_omni")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("qwen2_5_onmi", "mean .*qwen2_5_omni"),
        ("gone.py:MyFamily", "gone.py"),
        ("{}:Mine", "defines no 'Mine'"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_before_torch_is_imported(
    option: str, message: str, family: str, tiny_checkpoint: str, data_args: DataArguments, tmp_path: Path
) -> None:
    words = ["--model", tiny_checkpoint, "--data_root", data_args.data_root, "--output_dir", str(tmp_path / "out")]
    words += ["--family", option.format(family.removesuffix(":MyFamily"))]
    with pytest.raises(ValueError, match=message):
        check_asked(read_asked("recipes/sft.py", words))


def test_the_families_import_no_torch() -> None:
    code = "import sys, aurora_rl.models.mllm; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split() == ["False", "False"]
