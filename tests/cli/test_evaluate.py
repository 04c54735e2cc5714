"""`aurora-rl evaluate` and `aurora-rl compare` as they are typed."""

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.cli import main
from aurora_rl.data.run_lengths import decode_masks
from aurora_rl.evaluation import of_model as model_evaluation
from aurora_rl.evaluation.of_model import EvaluationArguments
from aurora_rl.evaluation.records import read_results
from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.scripts import evaluate as recipe
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from tests.saved_predictions import levels, rows_of, write_pngs, write_truth

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with data/ and with two systems' predictions, good/ and bad/."""
    write_truth(tmp_path / "data")
    rows = rows_of("test_s", "test_u", "test_n")
    write_pngs(tmp_path / "good", {row: levels(row) for row in rows})
    write_pngs(tmp_path / "bad", {row: np.zeros_like(levels(row)) for row in rows})
    return tmp_path


def rescore(folder: Path, name: str, options: str = "") -> int:
    command = ["evaluate", "--predictions", str(folder / name), "--data_root", str(folder / "data")]
    return main([*command, "--output_dir", str(folder / "scores" / name), *shlex.split(options)])


def scores_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def compare(folder: Path, options: str = "") -> int:
    return main(["compare", str(folder / "scores" / "bad"), str(folder / "scores" / "good"), *shlex.split(options)])


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text += f" {data.strip()}" if data.strip() else ""


# ---- saved predictions ------------------------------------------------------------------------------------------


def test_all_test_splits_are_scored_under_refavs_unless_told_otherwise(saved, capsys):
    assert rescore(saved, "good") == 0
    tables = scores_of(saved / "scores" / "good")
    assert (tables["preset"], set(tables["splits"])) == ("refavs", {"test_s", "test_u", "test_n"})
    output = capsys.readouterr().out
    assert "preset refavs" in output and "Mix, mean_of_splits" in output
    assert f"{tables['splits']['test_s']['J&F']:.4f}" in output


def test_split_and_preset_are_taken_from_the_command(saved):
    assert rescore(saved, "good", "--split test_s test_u --preset davis --num_workers 1") == 0
    tables = scores_of(saved / "scores" / "good")
    assert (tables["preset"], set(tables["splits"])) == ("davis", {"test_s", "test_u"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--preset sam", "there is no evaluation preset 'sam'"),
        ("--split dev", "no split 'dev'"),
        ("--batch_size 4", "--batch_size is an option for a model"),
        ("--chains nowhere.jsonl", "--chains nowhere.jsonl does not exist"),
    ],
)
def test_unusable_arguments_exit_with_2_and_say_why(saved, options, words, capsys):
    assert rescore(saved, "good", options) == 2
    output = capsys.readouterr()
    assert words in output.err and output.out == ""


def test_unusable_predictions_exit_with_2_and_name_row_and_file(saved, capsys):
    (saved / "good" / "1" / "2.png").unlink()
    assert rescore(saved, "good") == 2
    assert "row 1 (s0_drum_1): the prediction has 2 frames, the clip 3" in capsys.readouterr().err
    assert main(["evaluate", "--predictions", str(saved / "nowhere"), "--data_root", "x", "--output_dir", "o"]) == 2


def test_former_name_of_the_output_and_two_sources_are_refused(saved, capsys):
    for options, words in (
        (["--output", "out.json"], "--output_dir now"),
        (["--predictions", "a", "--results", "b"], "not allowed with"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(["evaluate", *options])
        assert exit_info.value.code == 2 and words in capsys.readouterr().err


def test_saved_predictions_are_scored_without_transformers(saved):
    code = "import sys; from aurora_rl.cli import main; code = main(sys.argv[1:])\n"
    code += "heavy = {'transformers', 'trl', 'peft', 'accelerate', 'datasets', 'deepspeed'} & set(sys.modules)\n"
    code += "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    options = ["--predictions", saved / "good", "--data_root", saved / "data", "--output_dir", saved / "out"]
    command = [sys.executable, "-c", code, "evaluate", *options, "--report", saved / "out.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr


#: The command, which stops after its first clip until it is told to go on.
STOPPED = """
import sys
from aurora_rl.evaluation import of_saved_masks as rescoring
from aurora_rl.cli import main
append = rescoring.ResumeFile.append
def append_and_wait(self, record):
    append(self, record)
    print("scored", flush=True)
    sys.stdin.read()
rescoring.ResumeFile.append = append_and_wait
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.multiprocess
def test_of_two_rescorings_into_one_output_the_second_is_refused_and_the_first_ends_well(saved, capsys):
    command = ["evaluate", "--predictions", str(saved / "good"), "--data_root", str(saved / "data")]
    command += ["--output_dir", str(saved / "scores" / "good"), "--num_workers", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STOPPED, *command], cwd=ROOT, text=True, **pipes) as first:
        assert first.stdout.readline() == "scored\n"
        assert rescore(saved, "good") == 2
        said = capsys.readouterr()
        assert f"process {first.pid}" in said.err and "Traceback" not in said.err and said.out == ""
        _, errors = first.communicate("")
    assert first.returncode == 0, errors
    assert len(read_results(saved / "scores" / "good")) == 8


def test_page_holds_the_tables_and_loads_nothing(saved):
    table = (saved / "data" / "metadata.csv").read_text()
    (saved / "data" / "metadata.csv").write_text(table.replace("The loud drum.", EVIL))
    (saved / "bad" / "1" / "0.png").unlink(), (saved / "bad" / "1" / "1.png").unlink()
    (saved / "bad" / "1" / "2.png").unlink(), (saved / "bad" / "1").rmdir()
    assert rescore(saved, "bad", f"--report {saved / 'out.html'}") == 0
    page = Page(saved / "out.html")
    assert "1 without a prediction" in page.text and "as empty masks. 1 rows repeat another row" in page.text
    assert "test_u, new categories" in page.text and "Mix, row weighted" in page.text
    assert "The types of 6 of 8 references are derived from the words of the sentence" in page.text
    assert EVIL in page.text and "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)


# ---- two systems ------------------------------------------------------------------------------------------------


def test_two_systems_are_compared_in_text_json_and_html(saved, capsys):
    assert rescore(saved, "good") == rescore(saved, "bad") == 0
    capsys.readouterr()
    assert compare(saved, f"--output {saved / 'both.json'} --report {saved / 'both.html'}") == 0
    output = capsys.readouterr().out
    assert "8 rows, preset refavs" in output and "better" in output
    comparison = json.loads((saved / "both.json").read_text())
    j = comparison["splits"]["test_s"][0]
    assert (j["name"], j["wins"], j["losses"], j["verdict"]) == ("J", 3, 0, "better")
    good, bad = (scores_of(saved / "scores" / name)["splits"] for name in ("good", "bad"))
    assert j["gain"]["mean"] == pytest.approx(good["test_s"]["J"] - bad["test_s"]["J"])
    page = Page(saved / "both.html")
    assert "good against bad" in page.text and "Largest wins of good" in page.text
    assert "test_u, seen categories" in page.text and list(comparison["by_novelty"]) == list(
        scores_of(saved / "scores" / "good")["tables"]["by_novelty"]
    )
    assert "The types of 6 of 8 references are derived from the words of the sentence" in page.text
    assert all(address.startswith("#") for address in page.addresses)


def test_systems_of_different_presets_or_rows_are_not_compared(saved, capsys):
    assert rescore(saved, "good") == rescore(saved, "bad", "--preset davis") == 0
    assert compare(saved) == 2
    assert "presets ['davis', 'refavs']" in capsys.readouterr().err
    assert rescore(saved, "bad", "--split test_s") == 0
    assert compare(saved) == 2
    assert "in one run only" in capsys.readouterr().err
    assert main(["compare", str(saved / "scores" / "bad"), str(saved / "nowhere")]) == 2


# ---- a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark") / "data"
    config = SyntheticConfig(train=1, val=0, test_s=2, test_u=0, test_n=1, rows_per_clip=1, frames=2, seconds=1.0)
    write_synthetic_benchmark(root, config)
    return root


CONFIG = """
fps: 2.0
num_frames: 2
instruction: "{reference}"
min_pixels: 256
max_pixels: 65536
num_samples: 2
max_completion_length: 6
batch_size: 2
use_cpu: true
"""


def test_model_is_scored_as_by_the_recipe(benchmark, tiny_checkpoint, tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    config.write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(benchmark), "--split", "test_s", "test_n"]
    output = tmp_path / "out"
    options = [
        "--output_dir",
        str(output),
        "--config",
        str(config),
        "--seed",
        "3",
        "--report",
        str(tmp_path / "out.html"),
    ]
    assert main([*command, *options]) == 0
    data_args = DataArguments(
        str(benchmark), fps=2.0, num_frames=2, instruction="{reference}", min_pixels=256, max_pixels=65536
    )
    arguments = EvaluationArguments(
        output_dir=str(tmp_path / "recipe"),
        split=["test_s", "test_n"],
        num_samples=2,
        max_completion_length=6,
        batch_size=3,
        seed=3,
        use_cpu=True,
    )
    recipe.main(ModelArguments(tiny_checkpoint), data_args, arguments)
    results = read_results(output)
    assert [(r.uid, r.greedy.text) for r in results] == [
        (r.uid, r.greedy.text) for r in read_results(tmp_path / "recipe")
    ]
    tables = scores_of(output)
    assert (tables["splits"]["test_s"]["n"], tables["splits"]["test_n"]["n"]) == (2, 1)
    assert (tmp_path / "recipe" / "scores.json").is_file() and "test_s" in Page(tmp_path / "out.html").text
    assert "test_s" in capsys.readouterr().out


@pytest.mark.parametrize("num_finished", [1, 3, 4], ids=["in the pass", "before the ablation", "in the ablation"])
def test_evaluation_of_a_model_that_was_interrupted_goes_on(
    benchmark, tiny_checkpoint, tmp_path, monkeypatch, num_finished
):
    config = tmp_path / "evaluate.yaml"
    config.write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(benchmark), "--split", "test_s", "test_n"]
    # One row at a time: the rows that are left share other batches, which changes the last digits.
    command += ["--config", str(config), "--batch_size", "1", "--ablations", "audio_muted", "--output_dir"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    scored: list[int] = []

    def interrupt(sample, *answer, **options):
        scored.append(sample.row)
        if len(scored) == num_finished + 1:
            raise KeyboardInterrupt
        return score(sample, *answer, **options)

    score = model_evaluation._score
    monkeypatch.setattr(model_evaluation, "_score", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main([*command, str(tmp_path / "out")])
    assert main([*command, str(tmp_path / "out")]) == 0
    assert len(scored) == 3 + 3 + 1  # the rows, muted once more, and the one that was lost
    for name in ("results.jsonl", "results.audio_muted.jsonl", "scores.json", "scores.audio_muted.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.rglob("*.partial.*"))


def test_a_resume_file_names_the_arguments_as_those_of_the_former_version_do(tmp_path):
    args = EvaluationArguments(str(tmp_path), split=["test_s"])
    file = model_evaluation._open_resume_file("", [], ModelArguments("m"), DataArguments("d"), args)
    recorded = json.loads(file.path.read_text())["arguments"]
    file.close()
    assert recorded["splits"] == ["test_s"]
    named = {"preset", "num_samples", "temperature", "ablations", "max_completion_length", "batch_size"}
    assert set(recorded) == {"splits", *named, "append_seg", "seed", "use_cpu"}


@pytest.mark.parametrize("num_finished", [2, 5])
def test_evaluation_in_batches_that_was_interrupted_gives_the_words_and_masks_of_an_unbroken_one(
    tiny_benchmark, tiny_checkpoint, tmp_path, monkeypatch, num_finished
):
    (tmp_path / "evaluate.yaml").write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--num_frames", "4"]
    command += ["--config", str(tmp_path / "evaluate.yaml"), "--num_samples", "2", "--batch_size", "4", "--output_dir"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    score, scored = model_evaluation._score, []

    def interrupt(sample, *answer, **options):
        if len(scored) == num_finished:
            raise KeyboardInterrupt
        scored.append(sample.row)
        return score(sample, *answer, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(model_evaluation, "_score", interrupt)
        main([*command, str(tmp_path / "out")])
    assert main([*command, str(tmp_path / "out")]) == 0
    whole, resumed = (read_results(tmp_path / name) for name in ("whole", "out"))
    assert len(scored) == num_finished < len(whole)
    for mine, other in zip(resumed, whole, strict=True):
        assert (mine.key, mine.greedy.text) == (other.key, other.greedy.text)
        assert (mine.greedy.pred_masks, mine.greedy.preset_masks) == (
            other.greedy.pred_masks,
            other.greedy.preset_masks,
        )
        for ours, theirs in zip(mine.sampled, other.sampled, strict=True):  # of which scores alone are kept
            assert (ours.is_right, ours.scores) == (theirs.is_right, theirs.scores)
            assert ours.iou == pytest.approx(theirs.iou, abs=1e-4)


def by_two_processes(command: list[str]) -> str:
    """Run `aurora-rl` twice at once, as a launcher does; what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launched = [*launcher, "-m", "aurora_rl.cli", *command]
    done = subprocess.run(launched, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_scored_alike(ours: Path, theirs: Path) -> None:
    """The same rows and words; J and F within 1e-4, as docs/evaluation.md says of a model's probabilities."""
    close = functools.partial(pytest.approx, abs=1e-4)
    for mine, other in zip(read_results(ours), read_results(theirs), strict=True):
        assert (mine.key, mine.completion.text) == (other.key, other.completion.text)
        assert [close(other.J), close(other.F), close(other.S)] == [mine.J, mine.F, mine.S]


@pytest.mark.multiprocess
def test_two_processes_score_a_model_row_by_row_as_one_does(benchmark, tiny_checkpoint, tmp_path):
    (tmp_path / "evaluate.yaml").write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(benchmark), "--split", "test_s", "test_n"]
    command += ["--config", str(tmp_path / "evaluate.yaml"), "--batch_size", "1", "--output_dir"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert by_two_processes([*command, str(tmp_path / "two")]).count("preset refavs") == 1
    assert_scored_alike(tmp_path / "two", tmp_path / "one")
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    for ours, theirs in zip(two, one, strict=True):
        assert (ours.key, ours.greedy.text) == (theirs.key, theirs.greedy.text)
        for mine, other in zip(ours.sampled, theirs.sampled, strict=True):
            assert (mine.is_right, mine.scores) == (other.is_right, other.scores)
            assert mine.iou == pytest.approx(other.iou, abs=1e-4)
    tables = [scores_of(tmp_path / name)["splits"] for name in ("one", "two")]
    assert tables[0].keys() == tables[1].keys() == {"test_s", "test_n"}
    for split, numbers in tables[0].items():
        assert tables[1][split] == pytest.approx(numbers, abs=1e-4)


@pytest.mark.multiprocess
def test_batches_change_the_last_digits_of_a_model_and_no_word(tiny_benchmark, tiny_checkpoint, tmp_path):
    (tmp_path / "evaluate.yaml").write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--num_frames", "4"]
    command += ["--config", str(tmp_path / "evaluate.yaml"), "--num_samples", "0"]
    assert main([*command, "--batch_size", "1", "--output_dir", str(tmp_path / "single")]) == 0
    assert main([*command, "--batch_size", "4", "--output_dir", str(tmp_path / "batches")]) == 0
    by_two_processes([*command, "--batch_size", "4", "--output_dir", str(tmp_path / "two")])
    assert len(read_results(tmp_path / "single")) == 9
    for name in ("batches", "two"):
        assert_scored_alike(tmp_path / name, tmp_path / "single")


def test_model_is_scored_as_the_pipeline_answers(benchmark, loaded, tmp_path):
    prompt = PromptOptions("Where is it? {reference}", "Be brief.", 256, 1024)
    loaded.remember_clips(ClipOptions(prompt, fps=2.0, num_frames=2))
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data_root", str(benchmark), "--use_cpu", "true"]
    command += ["--max_completion_length", "6", "--batch_size", "1", "--output_dir", str(tmp_path / "out")]
    assert main(command) == 0
    results = {result.key: result.greedy for result in read_results(tmp_path / "out")}
    assert len(results) == 3  # of the splits test_n and test_s; nobody named them
    pipeline = AuroraPipeline(str(tmp_path / "model"), max_completion_length=6, device="cpu")
    data_args = DataArguments(str(benchmark), fps=2.0, num_frames=2)
    for sample in [*load_split(data_args, "test_s"), *load_split(data_args, "test_n")]:
        answer = pipeline(video=list(sample.frame_paths), audio=sample.audio_path, text=sample.reference)
        [reference] = answer.references
        assert reference.windows[0].text == results[sample.key].text
        assert np.array_equal(reference.masks, decode_masks(results[sample.key].pred_masks))


def test_output_dir_of_the_command_wins_over_that_of_a_config(benchmark, tiny_checkpoint, tmp_path):
    config = tmp_path / "evaluate.yaml"
    config.write_text(f"{CONFIG}output_dir: {tmp_path / 'shared'}\nsplit: [test_n]\n")
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(benchmark), "--config", str(config)]
    assert main([*command, "--num_samples", "0", "--output_dir", str(tmp_path / "a")]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"results.jsonl", "scores.json"}
    assert not (tmp_path / "shared").exists()
    assert main([*command, "--num_samples", "0"]) == 0
    assert (tmp_path / "shared" / "scores.json").read_bytes() == (tmp_path / "a" / "scores.json").read_bytes()


def test_media_of_the_training_split_are_not_needed(benchmark, tiny_checkpoint, tmp_path):
    table = (benchmark / "metadata.csv").read_text().splitlines()
    [trained] = {line.split(",")[1].rsplit("_", 2)[0] for line in table if line.split(",")[2] == "train"}
    shutil.copytree(benchmark, tmp_path / "data", ignore=shutil.ignore_patterns(trained))
    (tmp_path / "evaluate.yaml").write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(tmp_path / "data"), "--split", "test_n"]
    command += ["--config", str(tmp_path / "evaluate.yaml"), "--num_samples", "0"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0


def test_model_without_data_or_with_an_unknown_option_is_refused(benchmark, tiny_checkpoint, tmp_path, capsys):
    assert main(["evaluate", "--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out")]) == 2
    assert "data_root" in capsys.readouterr().err
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(benchmark)]
    command += ["--output_dir", str(tmp_path / "out")]
    assert main([*command, "--use_cpu", "true", "--preset", "sam"]) == 2
    assert "there is no evaluation preset 'sam'" in capsys.readouterr().err
    assert main([*command, "--batchsize", "4"]) == 2
    assert "batchsize" in capsys.readouterr().err
