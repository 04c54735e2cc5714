"""The runner runs each stage once, knows what it can trust, and resumes where it was stopped.

The stages are small scripts that note each of their runs in a file.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from aurora_rl.scripts.run_stages import main
from aurora_rl.scripts.stage_plan import PlanError, read_plan

ROOT = Path(__file__).resolve().parents[2]

WRITE = """
import argparse, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--text", default="")
parser.add_argument("--read", type=pathlib.Path)
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
with open(args.out / "runs", "a") as file:
    file.write("run\\n")
if args.text == "fail":
    print("something broke")
    sys.exit(3)
read = args.read.read_text() if args.read else ""
if args.text != "silent":
    (args.out / "output.txt").write_text(read + args.text)
"""

#: Counts to 40 in two seconds; asked to stop, it leaves a checkpoint and the exit code of a stopped recipe.
COUNT = """
import argparse, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--resume_from_checkpoint")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
checkpoint = args.out / "checkpoint-1"
start = int((checkpoint / "step").read_text()) if args.resume_from_checkpoint == "true" else 0
with open(args.out / "starts", "a") as file:
    file.write(f"{start}\\n")
for step in range(start, 40):
    time.sleep(0.05)
    if stopped:
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "step").write_text(str(step + 1))
        sys.exit(143)
(args.out / "output.txt").write_text("40")
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "write.py").write_text(textwrap.dedent(WRITE))
    (folder / "count.py").write_text(textwrap.dedent(COUNT))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write_file(tmp_path: Path, stages: dict) -> str:
    path = tmp_path / "stages.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "stages": stages}, sort_keys=False))
    return str(path)


def writing(scripts: Path, text: str, **fields: object) -> dict:
    options = {"out": "{here}", "text": text, **fields.pop("options", {})}
    return {"run": str(scripts / "write.py"), "options": options, "outputs": ["output.txt"], **fields}


@pytest.fixture
def chain(scripts: Path, tmp_path: Path) -> str:
    """c reads what b wrote, which reads what a wrote; they stand in the file in the opposite order."""
    return write_file(
        tmp_path,
        {
            "c": writing(scripts, "c", options={"read": "{b}/output.txt"}),
            "b": writing(scripts, "b", options={"read": "{a}/output.txt"}),
            "a": writing(scripts, "a"),
        },
    )


def runs(out: Path, stage: str) -> int:
    path = out / stage / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_stages_run_after_those_they_refer_to(chain, out):
    assert main(["--config", chain]) == 0
    assert (out / "c" / "output.txt").read_text() == "abc"


def test_the_processor_time_of_all_stages_is_told(chain, out, capsys):
    main(["--config", chain])
    for record in (out / "stages").glob("*.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "cpu_seconds": 100.0}))
    capsys.readouterr()
    main(["--config", chain])
    assert "the stages took 5 minutes of processor time" in capsys.readouterr().out


def test_a_run_leaves_the_callers_signal_handlers_as_they_were(chain):
    before = signal.getsignal(signal.SIGTERM)
    main(["--config", chain])
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_complete_is_not_run_again(chain, out):
    main(["--config", chain])
    assert main(["--config", chain]) == 0
    assert [runs(out, stage) for stage in "abc"] == [1, 1, 1]


@pytest.mark.parametrize("damage", ["delete", "change"])
def test_an_output_that_is_not_what_the_stage_wrote_is_made_again(chain, out, damage):
    main(["--config", chain])
    output = out / "b" / "output.txt"
    output.unlink() if damage == "delete" else output.write_text("cut")
    assert main(["--config", chain]) == 0
    assert output.read_text() == "ab"
    assert [runs(out, stage) for stage in "abc"] == [1, 2, 1]


def test_a_stage_is_not_trusted_once_what_it_was_made_of_has_changed(scripts, tmp_path, out, capsys):
    (tmp_path / "outside").write_text("1")
    path = write_file(
        tmp_path,
        {
            "a": writing(scripts, "a", options={"read": str(tmp_path / "outside")}),
            "b": writing(scripts, "b", options={"read": "{a}/output.txt"}),
        },
    )
    assert main(["--config", path]) == 0
    (tmp_path / "outside").write_text("2")
    (out / "a" / "output.txt").unlink()
    assert main(["--config", path]) == 2
    assert "stage b was run on other outputs of a than are there now" in capsys.readouterr().err
    assert [(out / stage / "output.txt").read_text() for stage in "ab"] == ["2a", "1ab"]
    assert main(["--config", path, "--redo", "b"]) == 0
    assert (out / "b" / "output.txt").read_text() == "2ab"


def test_another_command_does_not_go_on_in_a_used_folder(chain, scripts, tmp_path, out, capsys):
    main(["--config", chain])
    changed = write_file(tmp_path, {"a": writing(scripts, "A")})
    assert main(["--config", changed]) == 2
    assert "--redo a, which deletes" in capsys.readouterr().err
    assert (out / "a" / "output.txt").read_text() == "a"


def test_a_changed_config_counts_as_another_command(scripts, tmp_path, capsys):
    config = tmp_path / "stage.yaml"
    config.write_text("1")
    script = tmp_path / "noop.py"
    script.write_text("")
    path = write_file(tmp_path, {"a": {"run": str(script), "config": str(config)}})
    assert main(["--config", path]) == 0
    config.write_text("2")
    assert main(["--config", path]) == 2


def test_a_stage_is_bound_to_the_stages_it_needs(chain, scripts, tmp_path):
    main(["--config", chain])
    before = read_plan(chain)
    changed = write_file(
        tmp_path,
        {
            "c": writing(scripts, "c", options={"read": "{b}/output.txt"}),
            "b": writing(scripts, "b", options={"read": "{a}/output.txt"}),
            "a": writing(scripts, "other"),
        },
    )
    after = read_plan(changed)
    assert before.stages["c"] == after.stages["c"]
    assert before.digest("c") != after.digest("c")


def test_redo_runs_a_stage_and_what_follows_from_it(chain, out):
    main(["--config", chain])
    (out / "b" / "stale").write_text("")
    assert main(["--config", chain, "--redo", "b"]) == 0
    assert not (out / "b" / "stale").exists()
    assert [runs(out, stage) for stage in "abc"] == [1, 1, 1]  # b and c in new folders
    assert json.loads((out / "stages" / "b.json").read_text())["outputs"]


def test_until_leaves_the_later_stages_out(chain, out):
    assert main(["--config", chain, "--until", "b"]) == 0
    assert [runs(out, stage) for stage in "abc"] == [1, 1, 0]


def test_a_failed_stage_shows_the_end_of_its_log_and_stops_what_needs_it(scripts, tmp_path, out, capsys):
    path = write_file(
        tmp_path,
        {
            "a": writing(scripts, "fail"),
            "b": writing(scripts, "b", options={"read": "{a}/output.txt"}),
        },
    )
    assert main(["--config", path]) == 1
    error = capsys.readouterr().err
    assert "stage a failed with exit code 3" in error and "something broke" in error
    assert runs(out, "b") == 0
    assert main(["--config", path]) == 1  # and is tried again
    assert runs(out, "a") == 2


def test_no_stage_is_started_after_another_has_failed(scripts, tmp_path, out):
    path = write_file(tmp_path, {"a": writing(scripts, "fail"), "b": writing(scripts, "b"), "c": writing(scripts, "c")})
    assert main(["--config", path]) == 1
    assert [runs(out, stage) for stage in "abc"] == [1, 0, 0]


def test_a_stage_that_leaves_no_output_is_not_complete(scripts, tmp_path, capsys):
    path = write_file(tmp_path, {"a": writing(scripts, "silent")})
    assert main(["--config", path]) == 2
    assert "stage a ended well but did not write ['output.txt']" in capsys.readouterr().err


def test_each_value_makes_a_stage_and_reads_that_of_its_own_value(scripts, tmp_path, out):
    path = write_file(
        tmp_path,
        {
            "base": writing(scripts, "x"),
            "a": writing(scripts, "{seed}", each={"seed": [0, 1]}, options={"read": "{base}/output.txt"}),
            "b": writing(scripts, "b", each={"seed": [0, 1]}, options={"read": "{a}/output.txt"}),
            "all": writing(scripts, "end", needs=["b-*"]),
        },
    )
    assert main(["--config", path, "--jobs", "2"]) == 0
    assert [(out / f"b-{seed}" / "output.txt").read_text() for seed in (0, 1)] == ["x0b", "x1b"]
    assert read_plan(path).stages["all"].needs == ("b-0", "b-1")


def start(path: str) -> subprocess.Popen:
    command = [sys.executable, "recipes/run_stages.py", "--config", path]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_run_resumes_from_the_checkpoint(scripts, tmp_path, out, signal_number):
    stage = {"run": str(scripts / "count.py"), "options": {"out": "{here}"}, "outputs": ["output.txt"]}
    path = write_file(tmp_path, {"a": {**stage, "resumable": True}, "b": writing(scripts, "b", needs=["a"])})
    process = start(path)
    wait_for(out / "a" / "starts")
    time.sleep(0.3)
    process.send_signal(signal_number)
    assert process.wait(timeout=240) == 128 + signal_number
    step = int((out / "a" / "checkpoint-1" / "step").read_text())
    assert 0 < step < 40
    first = json.loads((out / "stages" / "a.json").read_text())
    assert first["seconds"] >= 0.05 * step
    assert runs(out, "b") == 0
    assert main(["--config", path]) == 0
    assert (out / "a" / "starts").read_text().split() == ["0", str(step)]
    assert runs(out, "b") == 1
    both = json.loads((out / "stages" / "a.json").read_text())
    assert both["seconds"] >= first["seconds"] + 0.05 * (40 - step)
    assert both["cpu_seconds"] > first["cpu_seconds"] > 0


def test_a_stage_that_outlives_its_runner_is_left_alone_and_then_run_again(scripts, tmp_path, out, capsys):
    stage = {"run": str(scripts / "count.py"), "options": {"out": "{here}"}, "outputs": ["output.txt"]}
    path = write_file(tmp_path, {"before": writing(scripts, "x"), "a": {**stage, "needs": ["before"]}})
    process = start(path)
    wait_for(out / "a" / "starts")
    process.kill()
    process.wait()
    assert main(["--config", path]) == 2
    assert "stage a is still running" in capsys.readouterr().err
    wait_for(out / "a" / "output.txt")
    while main(["--config", path]) == 2:  # the orphan has written its last, and is ending
        time.sleep(0.05)
    assert (out / "a" / "starts").read_text().split() == ["0", "0"]
    assert runs(out, "before") == 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"run": "x.py", "option": {}}}, r"stage a: unknown key\(s\) \['option'\]"),
        ({"../a": {"run": "x.py"}}, r"'../a' is no name of a stage"),
        ({"/a": {"run": "x.py"}}, "'/a' is no name of a stage"),
        ({"a": {}}, "stage a: name its script by either `run` or `launch`"),
        ({"a": {"run": "x.py", "options": {"model": "{b}"}}}, r"stage a refers to \{b\}: there is no such stage"),
        ({"a": {"run": "x.py", "needs": ["b*"]}}, r"stage a needs 'b\*': no stage has such a name"),
        (
            {"a": {"run": "x.py", "options": {"m": "{b}"}}, "b": {"run": "x.py", "each": {"seed": [0, 1]}}},
            r"stage a refers to \{b\}: 2 stages of that name fit",
        ),
        (
            {"a": {"run": "x.py", "needs": ["b"]}, "b": {"run": "x.py", "needs": ["a"]}},
            "these stages need one another: ",
        ),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, stages, message):
    with pytest.raises(PlanError, match=message):
        read_plan(write_file(tmp_path, stages))


def test_a_stage_may_lie_in_a_folder_of_several(scripts, tmp_path, out):
    path = write_file(
        tmp_path,
        {"eval/a": writing(scripts, "a"), "b": writing(scripts, "b", options={"read": "{eval/a}/output.txt"})},
    )
    assert main(["--config", path]) == 0
    assert (out / "eval" / "a" / "output.txt").read_text() == "a"
    assert (out / "b" / "output.txt").read_text() == "ab"
    assert main(["--config", path, "--redo", "eval/a"]) == 0
    assert [runs(out, stage) for stage in ("eval/a", "b")] == [1, 1]


def test_a_file_gives_what_differs_from_its_base(chain, scripts, tmp_path):
    path = tmp_path / "other.yaml"
    stages = {"b": {"options": {"text": "B"}}, "d": writing(scripts, "d", options={"read": "{c}/output.txt"})}
    path.write_text(yaml.safe_dump({"base": chain, "output_dir": str(tmp_path / "other"), "stages": stages}))
    assert main(["--config", str(path)]) == 0
    assert (tmp_path / "other" / "d" / "output.txt").read_text() == "aBcd"
    base, plan = read_plan(chain, output_dir=tmp_path / "other"), read_plan(path)
    assert [name for name in base.stages if base.stages[name] != plan.stages[name]] == ["b"]


def test_a_base_has_no_base(chain, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({"base": str(path)}))
    with pytest.raises(PlanError, match=r"base of .*again.yaml: unknown key\(s\) \['base'\]"):
        read_plan(path)


def test_what_no_other_stage_needs_is_named_at_the_end(chain, out, capsys):
    assert main(["--config", chain]) == 0
    said = capsys.readouterr().out
    assert f"see {out / 'c' / 'output.txt'}" in said and str(out / "b") not in said


@pytest.mark.parametrize("content", [None, "stages: ["], ids=["missing", "no YAML"])
def test_a_file_that_cannot_be_read_is_told_without_a_traceback(tmp_path, capsys, content):
    path = tmp_path / "stages.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["--config", str(path)]) == 2
    assert f"run_stages: {path} is no file of stages" in capsys.readouterr().err


def test_no_stage_is_named_like_that(chain, capsys):
    assert main(["--config", chain, "--until", "z"]) == 2
    assert "no stage is named ['z']" in capsys.readouterr().err


STAGE_FILES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if "stages" in yaml.safe_load(path.read_text())
)


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_shipped_stages_name_scripts_and_configs_that_are_there(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(path)
    for stage in plan.stages.values():
        script = next(part for part in stage.command if part.endswith(".py"))
        assert Path(script).is_file(), script
        assert stage.config is None or stage.config.is_file(), stage.config
