import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.benchmarks import (
    LOADERS,
    find_train_categories,
    list_test_splits,
    load_split,
    load_training_splits,
)
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model, peft_config
from aurora_rl.data.files import DatasetError
from aurora_rl.evaluation.ablations import ABLATIONS
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from aurora_rl.models.loading import SegmentationLoraConfig, load_model


@pytest.fixture
def sam_loaded(omni_checkpoint, sam_checkpoint):
    """A model with a `sam` mask decoder, which reads cached embeddings."""
    return load_model(omni_checkpoint, segmenter=SamSegmenter.from_checkpoint(sam_checkpoint).config)


def cached_clips(folder: Path) -> set[str]:
    return {media_id for path in folder.rglob("*.safetensors") for media_id in load_file(path)}


# The model


@pytest.mark.parametrize("names", [["towers"], ["visual", "audio_tower"]])
def test_model_is_frozen_where_the_arguments_say(names, tiny_checkpoint):
    loaded = assemble_model(ModelArguments(model=tiny_checkpoint, freeze=names), head="masks")
    frozen = {name.split(".")[0] for name, p in loaded.model.named_parameters() if not p.requires_grad}
    assert frozen == {"visual", "audio_tower"}


def test_lora_options_are_the_arguments(loaded):
    arguments = ModelArguments(model="", use_peft=True, lora_r=4, lora_alpha=12, lora_dropout=0.1)
    config = peft_config(arguments, loaded)
    assert isinstance(config, SegmentationLoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.1)
    assert config.modules_to_save == ["seg_head", "lm_head", "embed_tokens"]
    assert config.segmenter == loaded.segmenter_config


def test_half_precision_modules_trained_whole_are_warned_of(tiny_checkpoint, caplog):
    args = ModelArguments(model=tiny_checkpoint, use_peft=True)
    peft_config(args, load_model(tiny_checkpoint))
    assert not caplog.records
    peft_config(args, load_model(tiny_checkpoint, dtype=torch.bfloat16))
    assert "embed_tokens and lm_head are trained in torch.bfloat16" in caplog.text


def test_no_lora_where_none_is_asked_for(loaded):
    assert peft_config(ModelArguments(model=""), loaded) is None


def test_split_has_its_chains_only_if_they_are_named(data_args):
    assert all(sample.chain for sample in load_split(data_args, "val"))
    data_args.chains = None
    assert not any(sample.chain for sample in load_split(data_args, "val"))


def test_training_splits_are_drawn_from_and_optional(data_args):
    train_samples, eval_samples = load_training_splits(data_args)
    assert train_samples == load_split(data_args, "train") and eval_samples == []
    data_args.eval_split, data_args.max_eval_samples = "train", 2  # the split with several clips
    drawn = load_training_splits(data_args)[1]
    assert len({sample.media_id for sample in drawn}) == 2 > len({sample.media_id for sample in train_samples[:2]})
    data_args.eval_samples_seed = 1
    assert load_training_splits(data_args)[1] != drawn
    data_args.max_eval_samples = None
    assert load_training_splits(data_args)[1] == train_samples


def test_a_row_without_masks_trains_words_but_no_masks(data_args, train_samples, monkeypatch):
    rows = [dataclasses.replace(train_samples[0], mask_paths=("", "", "", ""), origin="mine.jsonl:7"), train_samples[1]]
    monkeypatch.setitem(LOADERS, "ref_avs", lambda args, split, chains: rows)
    with pytest.raises(DatasetError, match=r"clip '.*' \(row 0, mine.jsonl:7\) has no masks, but the task 'Reference"):
        load_training_splits(data_args)
    data_args.task = "tests/words_task.py:NameTheObject"
    assert load_training_splits(data_args)[0] == rows


@pytest.mark.parametrize("mixed", ["train", "val"])
def test_rows_with_frames_and_rows_of_sound_alone_are_in_no_batch_together(
    mixed, data_args, train_samples, monkeypatch
):
    heard = dataclasses.replace(train_samples[1], frame_paths=(), mask_paths=())
    rows = {mixed: [train_samples[0], heard]}
    monkeypatch.setitem(LOADERS, "ref_avs", lambda args, split, chains: rows.get(split, train_samples[:1]))
    data_args.eval_split = "val"
    data_args.task = "tests/words_task.py:NameTheObject"
    with pytest.raises(DatasetError, match=rf"clip '.*' \(row {heard.row}, .*\) has no frames, unlike the rows before"):
        load_training_splits(data_args)


def test_a_task_without_a_head_needs_no_frame_encoder_and_no_cache(sam_loaded, data_args, train_samples, monkeypatch):
    monkeypatch.setattr(type(sam_loaded), "frame_encoder", lambda *_: pytest.fail("a frame encoder is built"))
    data_args.task, data_args.chains = "tests/words_task.py:NameTheObject", None
    encode = assemble_encoder(data_args, sam_loaded, train_samples)
    assert encode(train_samples[0]).frame_inputs is None


def test_training_categories_are_read_without_media(data_args, tmp_path, caplog):
    shutil.copy(Path(data_args.data_root) / "metadata.csv", tmp_path)
    expected = {sample.category for sample in load_split(data_args, "train") if not sample.is_null}
    data_args.data_root = str(tmp_path)
    assert find_train_categories(data_args) == expected and len(expected) > 1
    caplog.set_level("INFO", "aurora_rl.assembly.benchmarks")
    data_args.train_split = "practice"
    assert find_train_categories(data_args) == set()
    assert "new and seen categories are not told apart" in caplog.text and "'practice'" in caplog.text
    data_args.benchmark = "omni_avs"
    assert find_train_categories(data_args) == set()


def test_test_splits_are_those_that_the_benchmark_has(data_args):
    assert list_test_splits(data_args) == ["test_n", "test_s", "test_u"]
    data_args.benchmark = "avsbench_s4"
    assert list_test_splits(data_args) == ["test"]


# The encoder of a `sam` model


def test_embeddings_of_all_samples_are_made_beforehand_and_read(sam_loaded, data_args, train_samples, tmp_path):
    data_args.embedding_cache = str(tmp_path)
    encode = assemble_encoder(data_args, sam_loaded, train_samples[:3])
    assert cached_clips(tmp_path) == {sample.media_id for sample in train_samples[:3]}
    frame_inputs = encode(train_samples[0]).frame_inputs
    expected = build_frame_encoder(sam_loaded.segmenter_config).encode(encode.load(train_samples[0]).frames)
    assert frame_inputs.shape == (4, 32, 8, 8)
    assert torch.equal(frame_inputs, expected.half())


def test_sam_is_not_trained_without_a_cache_folder_but_evaluated(sam_loaded, data_args, train_samples):
    with pytest.raises(ValueError, match="set `embedding_cache`"):
        assemble_encoder(data_args, sam_loaded, train_samples[:1])
    encode = assemble_encoder(data_args, sam_loaded, train_samples[:1], is_trainable=False)
    expected = build_frame_encoder(sam_loaded.segmenter_config).encode(encode.load(train_samples[0]).frames)
    assert torch.equal(encode(train_samples[0]).frame_inputs, expected)


def test_evaluation_does_not_change_what_a_checkpoint_remembers(loaded, encode, data_args, train_samples):
    data_args.instruction = "Find {reference}"
    assert (
        assemble_encoder(data_args, loaded, train_samples, is_trainable=False).options.instruction == "Find {reference}"
    )
    assert loaded.clip_options.prompt == encode.options
    assemble_encoder(data_args, loaded, train_samples)
    assert loaded.clip_options.prompt.instruction == "Find {reference}"


def test_changed_frames_are_neither_read_from_the_cache_nor_kept_in_it(sam_loaded, data_args, train_samples, tmp_path):
    """Blanked frames must not be answered by the clip's cached embeddings, nor stand for the clip in later runs."""
    sample, other = train_samples[0], train_samples[2]
    data_args.embedding_cache = str(tmp_path)
    plain = assemble_encoder(data_args, sam_loaded, [sample])
    ablation = ABLATIONS["frames_blanked"]
    blanked = assemble_encoder(
        data_args, sam_loaded, [sample, other], load=ablation.load, frames_are_changed=ablation.changes_frames
    )
    seen = blanked(sample).frame_inputs
    assert not torch.allclose(seen.float(), plain(sample).frame_inputs.float(), atol=1e-2)
    assert torch.equal(seen, blanked(other).frame_inputs)  # one grey is like another
    assert cached_clips(tmp_path) == {sample.media_id}


def test_muted_clips_read_the_same_embeddings(sam_loaded, data_args, train_samples, tmp_path):
    data_args.embedding_cache = str(tmp_path)
    expected = assemble_encoder(data_args, sam_loaded, train_samples[:1])(train_samples[0])
    ablation = ABLATIONS["audio_muted"]
    muted = assemble_encoder(data_args, sam_loaded, train_samples[:1], load=ablation.load)(train_samples[0])
    assert torch.equal(muted.frame_inputs, expected.frame_inputs)
    assert muted.loudness_dbfs < -60 < expected.loudness_dbfs


def test_full_cache_needs_no_sam_checkpoint(omni_checkpoint, sam_checkpoint, data_args, train_samples, tmp_path):
    config = SamSegmenter.from_checkpoint(sam_checkpoint).config
    config["checkpoint"] = str(shutil.copytree(sam_checkpoint, tmp_path / "sam"))
    sam_loaded = load_model(omni_checkpoint, segmenter=config)
    data_args.embedding_cache = str(tmp_path / "cache")
    expected = assemble_encoder(data_args, sam_loaded, train_samples[:1])(train_samples[0]).frame_inputs
    shutil.rmtree(tmp_path / "sam")
    again = assemble_encoder(data_args, sam_loaded, train_samples[:1])(train_samples[0]).frame_inputs
    assert torch.equal(again, expected)


def test_dot_needs_no_cache(encode, train_samples, data_args):
    assert data_args.embedding_cache is None
    assert encode(train_samples[0]).frame_inputs.shape == (4, 3, 32, 32)
