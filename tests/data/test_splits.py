import json

import pytest

from aurora_rl.assembly.benchmarks import LOADERS
from aurora_rl.data.files import DatasetError
from aurora_rl.data.splits import SPLIT_READERS, list_splits

QUESTION = {"uid": "a", "split": "val", "clip": "a", "question": "Which?", "choices": ["x", "y"], "answer": "x"}


def test_every_benchmark_tells_its_splits():
    assert SPLIT_READERS.keys() == LOADERS.keys()


def test_splits_are_told_by_tables(tiny_benchmark):
    assert list_splits("ref_avs", tiny_benchmark) == ["test_n", "test_s", "test_u", "train", "val"]


@pytest.mark.parametrize(
    ("benchmark", "files", "splits"),
    [
        ("avsbench_s4", {"s4_meta_data.csv": "name,start,category,split\na,0,dog,train\nb,0,cat,test\n"}, "test train"),
        ("avsbench_ms3", {"ms3_meta_data.csv": ",split\na,val\n"}, "val"),
        ("avsbench_avss", {"metadata.csv": "vid,uid,s_min,s_sec,a_obj,split,label\na,a,0,0,x,test,v2\n"}, "test"),
        ("omni_avs", {"meta_expressions_train.jsonl": "", "video_dict.json": ""}, "train"),
        ("questions", {"questions.jsonl": json.dumps(QUESTION)}, "val"),
        ("hf_dataset", {"data/val-00000-of-00001.parquet": "", "data/README.md": ""}, "val"),
    ],
)
def test_splits_of_each_layout(tmp_path, benchmark, files, splits):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list_splits(benchmark, tmp_path) == splits.split()


@pytest.mark.parametrize("benchmark", SPLIT_READERS)
def test_a_folder_of_another_layout_is_told_with_what_it_holds(tmp_path, benchmark):
    (tmp_path / "frames").mkdir()
    with pytest.raises(DatasetError) as error:
        list_splits(benchmark, tmp_path)
    assert "there is no" in str(error.value) or "holds frames/" in str(error.value)


def test_a_row_without_a_split_is_left_to_the_loader(tmp_path):
    (tmp_path / "metadata.csv").write_text("vid,uid,split,fid,exp\na,a_cat_1,train,0,x\nb,b_cat_1,,0,x\n")
    assert list_splits("ref_avs", tmp_path) == ["train"]
