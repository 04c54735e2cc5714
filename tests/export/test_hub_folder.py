"""What is exported for the hub loads elsewhere, holds nothing that can run, and says of itself what is known."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.cli import main
from aurora_rl.evaluation.tables import score_tables
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.tasks.prompts import SEG_TOKEN
from tests.row_results import null, replied, row

CLIPS = ClipOptions(prompt=PromptOptions(instruction="{reference}", min_pixels=256, max_pixels=65536), fps=2.0)


def export(model: str | Path, folder: Path, *options: str | Path) -> int:
    return main(["export", "--model", str(model), "--to", "hf", "--output_dir", str(folder), *map(str, options)])


def card(folder: Path) -> tuple[dict, str]:
    _, front_matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front_matter), text


@pytest.fixture
def trained(tiny_checkpoint: str, tmp_path: Path) -> Path:
    """A folder as a run leaves it, with the pickle that transformers' Trainer writes."""
    loaded = load_model(tiny_checkpoint)
    loaded.remember_clips(CLIPS)
    folder = tmp_path / "run"
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(pickle.dumps({"seed": 0}))
    return folder


@pytest.fixture
def adapter(loaded: LoadedModel, tiny_checkpoint: str, tmp_path: Path) -> Path:
    """A LoRA adapter that changes what the model says, on a folder of this machine."""
    loaded.model.config._name_or_path = tiny_checkpoint
    loaded.remember_clips(CLIPS)
    model = get_peft_model(loaded.model, peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    loaded.processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = loaded.processor.tokenizer(f"The drum. {SEG_TOKEN}", return_tensors="pt").input_ids
    with torch.no_grad():
        return loaded.model.eval()(input_ids=ids).logits


def test_a_whole_model_comes_back_bit_by_bit(trained, tmp_path):
    assert export(trained, tmp_path / "model") == 0
    expected, found = load_model(str(trained)), load_model(str(tmp_path / "model"))
    weights = expected.model.state_dict()
    assert found.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in found.model.state_dict().items())
    assert found.segmenter_config == expected.segmenter_config
    assert found.clip_options == CLIPS
    assert found.seg_token_id == expected.seg_token_id


def test_the_folder_holds_safetensors_and_text_and_nothing_of_this_machine(trained, tmp_path):
    export(trained, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names >= {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.suffix for path in (tmp_path / "model").iterdir()} <= {".json", ".md", ".jinja", ".safetensors"}
    for path in (tmp_path / "model").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_an_adapter_is_merged_or_kept(adapter, tmp_path):
    assert export(adapter, tmp_path / "merged") == 0
    assert export(adapter, tmp_path / "kept", "--no_merge", "--base_model", "someone/tiny") == 0
    merged = load_model(str(tmp_path / "merged"))
    assert not isinstance(merged.model, PeftModel)
    assert merged.clip_options == CLIPS
    torch.testing.assert_close(logits(merged), logits(load_model(str(adapter))))
    fields = json.loads((tmp_path / "kept" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "someone/tiny"
    assert fields["segmenter"]["type"] == "dot" and fields["clip_options"]["fps"] == 2.0
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "kept"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert not (tmp_path / "kept" / "model.safetensors").exists()
    assert SEG_TOKEN in AutoProcessor.from_pretrained(tmp_path / "kept").tokenizer.get_vocab()


def test_an_adapter_that_was_kept_loads_on_its_base(adapter, tiny_checkpoint, tmp_path, monkeypatch):
    export(adapter, tmp_path / "kept", "--no_merge", "--base_model", "tiny")
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)  # a place that has the base under that name
    torch.testing.assert_close(logits(load_model("kept")), logits(load_model(str(adapter))), rtol=0, atol=0)


def test_an_adapter_on_a_local_folder_cannot_be_kept(adapter, tmp_path, capsys):
    assert export(adapter, tmp_path / "kept", "--no_merge") == 2
    assert "merge it, or name the same weights on the hub by --base_model" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_our_class_and_plain_transformers_load_what_the_card_says(trained, tmp_path):
    export(trained, tmp_path / "model")
    own = AuroraQwen2_5Omni.from_pretrained(tmp_path / "model")
    weights = load_model(str(trained)).model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in own.state_dict().items())
    plain, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert report["missing_keys"] == set() == report["mismatched_keys"]
    assert {name.split(".")[0] for name in report["unexpected_keys"]} == {"seg_head"}
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.state_dict().items())
    _, text = card(tmp_path / "model")
    assert "by `Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained`" in text


def test_the_code_on_the_card_runs(trained, film, tmp_path, monkeypatch):
    export(trained, tmp_path / "model")
    film([np.full((64, 64, 3), 80, np.uint8)] * 8)
    monkeypatch.chdir(tmp_path)
    use, load = re.findall(r"```python\n(.*?)```", card(tmp_path / "model")[1], flags=re.DOTALL)
    names: dict = {}
    exec(use.replace('AuroraPipeline("model")', 'AuroraPipeline("model", max_completion_length=2)') + load, names)
    assert names["answer"].references[0].masks.shape == (4, 64, 64)
    assert isinstance(names["model"], AuroraQwen2_5Omni)


# The card


def test_scores_on_the_card_are_those_of_the_file_under_their_preset(trained, tmp_path):
    rows = [row(0, J=0.25, F=0.75), row(1, "test_u", J=0.5, F=0.5), null(2, 0.125, S_per_frame=0.0)]
    (tmp_path / "scores.json").write_text(json.dumps(score_tables(rows) | {"source": "/somewhere/private"}))
    export(trained, tmp_path / "model", "--scores", tmp_path / "scores.json")
    _, text = card(tmp_path / "model")
    assert "Preset `refavs`" in text and "/somewhere/private" not in text
    assert "| | J | F | J&F | S | S_per_frame | null_accuracy | n | missing |" in text
    assert "| test_s | 0.2500 | 0.7500 | 0.5000 |  |  |  | 1 | 0 |" in text
    assert "| test_n |  |  |  | 0.1250 | 0.0000 | 0.0000 | 1 | 0 |" in text
    assert "| Mix, mean_of_splits | 0.3750 | 0.6250 | 0.5000 |" in text


def test_a_model_of_words_is_exported_without_talk_of_masks(omni_checkpoint, tmp_path):
    loaded = load_model(omni_checkpoint)
    loaded.remember_clips(dataclasses.replace(CLIPS, task="MultipleChoice"))
    loaded.model.save_pretrained(tmp_path / "run")
    loaded.processor.save_pretrained(tmp_path / "run")
    rows = [replied(0), replied(1, None, is_right=False)]
    (tmp_path / "scores.json").write_text(json.dumps(score_tables(rows)))
    assert export(tmp_path / "run", tmp_path / "model", "--scores", tmp_path / "scores.json") == 0
    data, text = card(tmp_path / "model")
    assert data["pipeline_tag"] == "video-text-to-text" and "referring-segmentation" not in data["tags"]
    assert "mask" not in text.lower() and "refavs" not in text and "seg_head" not in text
    assert "| | accuracy | format_rate | n | unreadable |" in text and "| test_s | 0.5000 | 0.5000 | 2 | 1 |" in text
    assert 'task="module_or_file:MultipleChoice"' in text and "answer.references[0].value" in text


def test_the_card_makes_nothing_up(trained, tmp_path):
    export(trained, tmp_path / "model")
    data, text = card(tmp_path / "model")
    assert data["license"] == "other" and "base_model" not in data and "datasets" not in data
    assert data["pipeline_tag"] == "mask-generation" and "audio-visual-segmentation" in data["tags"]
    for claim in ("None were given when the model was exported.", "Not stated by who exported the model"):
        assert claim in text
    assert "|" not in text.split("## Scores")[1].split("## How to load it")[0]


def test_the_card_says_what_it_is_told(trained, tmp_path):
    options = ["--base_model", "Qwen/Qwen2.5-Omni-7B", "--license", "apache-2.0", "--datasets", "Ref-AVSBench", "a/b"]
    export(trained, tmp_path / "model", *options)
    data, text = card(tmp_path / "model")
    assert data["base_model"] == "Qwen/Qwen2.5-Omni-7B" and data["base_model_relation"] == "finetune"
    assert data["license"] == "apache-2.0" and data["datasets"] == ["a/b"]
    assert "- Ref-AVSBench\n- a/b\n" in text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("no json", "is no JSON"),
        ("[1]", "holds no preset"),
        ('{"preset": "x"}', "holds no"),
        ('{"preset": "x", "splits": {}, "mix": {}, "num_rows": 1}', "of version 0.1: give the scores.json beside it"),
    ],
)
def test_a_file_without_scores_is_refused_before_anything_is_written(trained, tmp_path, capsys, content, complaint):
    (tmp_path / "scores.json").write_text(content)
    assert export(trained, tmp_path / "model", "--scores", tmp_path / "scores.json") == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


# What cannot be exported


def test_a_folder_with_files_is_left_alone(trained, tmp_path, capsys):
    assert export(trained, trained) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert (trained / "training_args.bin").exists()


def test_a_plain_mllm_is_sent_to_vllm(omni_checkpoint, tmp_path, capsys):
    assert export(omni_checkpoint, tmp_path / "model") == 2
    assert "has no mask decoder, it was not trained here: export it with --to vllm" in capsys.readouterr().err


def test_an_image_encoder_of_this_machine_must_be_named(omni_checkpoint, sam_checkpoint, tmp_path, capsys):
    segmenter = {"type": "sam", "image_size": 128, "checkpoint": sam_checkpoint}
    loaded = load_model(omni_checkpoint, segmenter=segmenter)
    loaded.model.save_pretrained(tmp_path / "run")
    loaded.processor.save_pretrained(tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "model") == 2
    assert "on the hub by --image_encoder" in capsys.readouterr().err
    assert export(tmp_path / "run", tmp_path / "model", "--image_encoder", "someone/sam") == 0
    exported = json.loads((tmp_path / "model" / "config.json").read_text())["segmenter"]
    assert exported == {**loaded.segmenter_config, "checkpoint": "someone/sam"}
    assert "it is read from `someone/sam`" in card(tmp_path / "model")[1]


@pytest.mark.parametrize("options", [["--scores", "out.json"], ["--no_merge"], ["--push", "a/b"]])
def test_options_of_the_hub_say_nothing_to_vllm(trained, tmp_path, capsys, options):
    assert main(["export", "--model", str(trained), "--to", "vllm", "-o", str(tmp_path / "engine"), *options]) == 2
    assert f"{options[0].replace('no_', '')} is an option of --to hf" in capsys.readouterr().err


# Pushing


@dataclasses.dataclass
class Hub:
    """Stands for the hub: notes what it is sent."""

    calls: list
    endpoint: str = "https://hub.example"

    def __call__(self, token: str | None = None) -> "Hub":
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool, **_):
        self.calls.append(("create", repo_id, private))
        return dataclasses.make_dataclass("RepoUrl", ["repo_id"])(repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Path, **_):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_pushing_uploads_the_folder_with_the_token_of_the_environment(trained, tmp_path, monkeypatch, capsys):
    hub = Hub([])
    monkeypatch.setattr("aurora_rl.export.hub_folder.HfApi", hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert export(trained, tmp_path / "model", "--push", "someone/aurora", "--private") == 0
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert hub.calls == [
        ("token", "hf_secret"),
        ("create", "someone/aurora", True),
        ("upload", "someone/aurora", names),
    ]
    captured = capsys.readouterr()
    assert captured.out.strip() == "https://hub.example/someone/aurora"
    assert "hf_secret" not in captured.out + captured.err
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "model").iterdir())
    assert 'AuroraPipeline("someone/aurora")' in card(tmp_path / "model")[1]


def test_pushing_without_a_token_stops_before_anything_is_written(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert export(trained, tmp_path / "model", "--push", "someone/aurora") == 2
    assert "in the environment variable HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_transformers_own_push_takes_a_model_with_a_head(loaded, monkeypatch):
    sent = []
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: Hub(sent))
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: NoCard())
    monkeypatch.setattr(type(loaded.model), "_upload_modified_files", note_upload(sent))
    loaded.model.push_to_hub("someone/aurora")
    [(_, repo_id, _), names] = sent
    assert repo_id == "someone/aurora"
    assert {"config.json", "generation_config.json", "model.safetensors"} <= names


class NoCard:
    def save(self, path: str) -> None:
        pass


def note_upload(sent: list):
    def upload(self, folder: str, repo_id: str, **_) -> None:
        sent.append({path.name for path in Path(folder).iterdir()})

    return upload


# Loading runs nothing that a folder brings along


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "unpickled")


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_pickles_planted_in_an_exported_folder_stay_closed(trained, tmp_path, has_safetensors):
    folder, bomb = tmp_path / "model", Bomb(tmp_path / "unpickled")
    export(trained, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(bomb))
    if has_safetensors:
        load_model(str(folder))
        AuroraQwen2_5Omni.from_pretrained(folder)
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            load_model(str(folder))
    assert not bomb.path.exists()


def test_code_planted_in_an_exported_folder_is_not_run(trained, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "imported"
    export(trained, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    auto_map = {name: "evil.Evil" for name in ("AutoConfig", "AutoProcessor", "AutoModel", "AutoTokenizer")}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**fields, "auto_map": auto_map}))
    try:
        load_model(str(folder))
    except ValueError as error:  # transformers refuses what it has no class of its own for
        assert "trust_remote_code" in str(error)
    AuroraQwen2_5Omni.from_pretrained(folder)
    assert not marker.exists()
