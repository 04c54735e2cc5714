import json
import lzma
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aurora_rl.cli import main
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark

CONFIG = SyntheticConfig(train=1, val=1, test_s=1, test_u=0, test_n=1, rows_per_clip=1, frames=2, size=32, seconds=1.0)
DOCTOR_OPTIONS = ["--num_frames", "2"]
KEYS = ["rows", "todo_rows", "null_rows", "duplicate_rows", "repeated_uids", "null_sentences", "splits"]
OFFICIAL_TABLE = Path(__file__).parents[1] / "data" / "ref_avs_metadata.csv.xz"
NOTES = "vid,uid,split,fid,exp\n" + "a_0_1,a_0_1_cat_1,train,0,The cat.\n" * 2


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "data"
    write_synthetic_benchmark(root, CONFIG)
    return root


@pytest.fixture
def broken(clean: Path, tmp_path: Path) -> Path:
    """A benchmark without its first clip's audio."""
    root = Path(shutil.copytree(clean, tmp_path / "broken"))
    (root / "media" / "train-00000_0_1000" / "audio.wav").unlink()
    return root


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A csv file with a duplicate row."""
    path = tmp_path / "rows.csv"
    path.write_text(NOTES)
    return path


def doctor(root: Path, *options: str) -> int:
    return main(["doctor", str(root), *options])


def test_clean_folder_exits_with_0(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(clean, *DOCTOR_OPTIONS) == 0
    output = capsys.readouterr()
    assert "0 kind(s) of errors, 0 of notes" in output.out
    assert output.err == ""  # no progress bar where nobody watches


def test_problem_exits_with_1_and_says_what_to_do(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(broken, *DOCTOR_OPTIONS, "--num_workers", "2") == 1
    output = capsys.readouterr().out
    for words in ("audio missing", "1 clip", "metadata.csv:2", "add it or drop the clip's"):
        assert words in output


def test_the_official_table_has_the_counts_that_are_known_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ref-AVSBench's own metadata.csv, see the licence beside it; the counts were taken by other means."""
    (tmp_path / "metadata.csv").write_bytes(lzma.decompress(OFFICIAL_TABLE.read_bytes()))
    assert doctor(tmp_path, "--metadata_only", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in KEYS if key != "splits"} == {
        "rows": 20459,
        "todo_rows": 25,
        "null_rows": 1708,
        "duplicate_rows": 8,
        "repeated_uids": 11,
        "null_sentences": 8,
    }
    rows = {split: counts["rows"] for split, counts in found["splits"].items()}
    assert rows == {"train": 14113, "val": 1349, "test_s": 2288, "test_u": 1656, "test_n": 1028, "TODO": 25}


def test_json_has_the_promised_keys(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(broken, *DOCTOR_OPTIONS, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [*KEYS, "problems", "clips_checked"]
    assert report["splits"]["test_n"] == {"rows": 1, "media_ids": 1, "null_rows": 1}
    (problem,) = report["problems"]
    assert list(problem) == ["kind", "severity", "count", "unit", "first", "advice"]
    assert (problem["kind"], problem["severity"], problem["count"]) == ("missing_audio", "error", 1)


def test_notes_fail_only_when_strict(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(notes, "--metadata_only") == 0
    assert doctor(notes, "--metadata_only", "--strict") == 1
    assert "rows given twice in a split" in capsys.readouterr().out


def test_metadata_only_reads_a_csv_file_or_a_folder(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(broken, "--metadata_only", "--json") == 0  # the missing audio is not looked for
    of_folder = capsys.readouterr().out
    assert doctor(broken / "metadata.csv", "--metadata_only", "--json") == 0
    assert capsys.readouterr().out == of_folder
    assert json.loads(of_folder)["clips_checked"] is None


def test_unusable_root_exits_with_2(notes: Path, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root, options, words in (
        (notes.parent / "nowhere", [], "does not exist: "),
        (notes.parent / "nowhere", ["--metadata_only"], "there is no"),
        (notes.parent, [], "there is no"),  # a folder without metadata.csv
        (notes, [], "add --metadata_only"),
        (clean, ["--split", "dev"], "no split(s) ['dev']"),
    ):
        assert doctor(root, *options) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert words in output.err


@pytest.mark.parametrize(
    "options", [["--num_workers", "0"], ["--num_frames", "-1"], ["--num_frames", "many"], ["--unknown"]]
)
def test_unusable_arguments_exit_with_2(clean: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        doctor(clean, *options)
    assert exit_info.value.code == 2


def test_any_number_of_frames_may_be_asked_for(clean: Path) -> None:
    assert doctor(clean) == 1  # 2 frames, 10 expected
    assert doctor(clean, "--num_frames", "any") == 0


def test_text_of_a_malicious_row_neither_steers_the_terminal_nor_floods_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metadata.csv").write_text(
        "vid,uid,split,fid,exp\n"
        f"x,../{'a' * 100_000}_cat_1,train,0,The cat.\n"
        "x,\x1b]0;owned\x07_cat_1,\x1b[2Jtrain[red],0,The cat.\n"
    )
    assert doctor(tmp_path, "--metadata_only") == 1
    output = capsys.readouterr().out
    assert "\x1b" not in output and "\x07" not in output
    assert "train[red]" in output
    assert len(output) < 10_000


def test_console_script_names_this_main() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"aurora-rl": "aurora_rl.cli:main"}


def test_command_starts_without_torch(notes: Path) -> None:
    code = "import sys; from aurora_rl.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "doctor", str(notes), "--metadata_only", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert process.returncode == 0, process.stderr
