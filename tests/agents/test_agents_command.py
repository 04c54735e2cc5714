"""`aurora-rl agents` from a benchmark to masks that are scored: through failures and kills, with the truth hidden."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.agents.changes import count_changes
from aurora_rl.agents.text_segmenters import AuroraSegmenter, OracleSegmenter, read_clip
from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.cli import main as aurora_rl
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.files.journal import RowJournal
from aurora_rl.first_clip import CLIPS, MODEL
from tests.fake_endpoint import FakeEndpoint

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "agents" / "ref_avs.yaml"
#: What each role says; row n is of category n % 3, and a third of the rows refers to nothing.
SAID = {
    "recognise": {"reason": "two drums", "difficulty": "hard", "modality": "sound"},
    "reason": {"reason": "it hums", "target": "the drum on the left"},
    "nothing": {"reason": "silence", "target": "nothing"},
    "judge": {"reason": "it hums", "target": "the drum on the left"},
    "phrase": {"phrase": "left drum"},
    "check": {"reason": "it fits", "verdict": "accept"},
}


def reply(content: object) -> tuple[int, str]:
    message = {"role": "assistant", "content": json.dumps(content)}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return 200, json.dumps(whole)


@pytest.fixture
def agents(endpoint: FakeEndpoint) -> FakeEndpoint:
    """An endpoint that plays all roles; what its plan calls "good" is answered by the role that is asked."""
    endpoint.bodies = {name: reply(content) for name, content in SAID.items()}

    def judge(body: dict, action: str) -> str:
        if action != "good":
            return action
        name = body["response_format"]["json_schema"]["name"]
        row = int(json.dumps(body).split("thing of row ")[1].split(".")[0])
        return "nothing" if name == "reason" and row % 3 == 2 else name

    endpoint.judge = judge
    return endpoint


@pytest.fixture
def command(tmp_path: Path, agents: FakeEndpoint, make_rows: Callable[[int], Path]) -> Callable[..., int]:
    """Run the command on twelve rows with the oracle."""

    def run(**options: object) -> int:
        values = {
            "config": RECIPE,
            "data_root": make_rows(12),
            "num_frames": 1,
            "split": "train",
            "text_segmenter": "oracle",
        }
        values |= {"output": tmp_path / "out" / "rows.jsonl", "model": "strong", "base_url": agents.url}
        values |= {"backoff_s": 0.001, "input_price": 1, "output_price": 2, **options}
        return aurora_rl(["agents", *(word for name, value in values.items() for word in (f"--{name}", str(value)))])

    return run


def records(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]


def masks(tmp_path: Path, kind: str = "masks") -> list[np.ndarray]:
    return [np.load(tmp_path / "out" / f"rows.{kind}" / f"{row}.npz")["masks"] for row in range(12)]


def test_every_row_has_its_record_and_its_masks(command, agents, tmp_path, capsys):
    assert command() == 0
    assert "4 nothing meant" in capsys.readouterr().out.splitlines()[-1]
    found = records(tmp_path)
    assert [record["row"] for record in found] == list(range(12))
    assert [record["outcome"] for record in found] == ["accepted at first", "accepted at first", "nothing meant"] * 4
    assert [record["calls"] for record in found] == [9, 9, 6] * 4  # three recognise, three reason, judge, phrase, check
    assert found[0]["attempts"] == [{"phrase": "left drum", "score": 1.0, "verdict": "accept", "reason": "it fits"}]
    assert [mask.all() for mask in masks(tmp_path)] == [True, True, False] * 4
    assert all(mask.shape == (1, 16, 32) and mask.dtype == bool for mask in masks(tmp_path, "first"))
    summary = json.loads((tmp_path / "out" / "rows.agents.json").read_text())
    assert summary["rows"] == 12 and summary["calls_a_row"] == 8.0 and summary["agreement"] == 1.0
    assert (summary["tokens_a_row"], summary["price_a_row"]) == (8 * 120, pytest.approx(8 * 140 / 1e6))
    assert summary["changes"]["right at first and at the end"] == 12
    report = json.loads((tmp_path / "out" / "rows.report.json").read_text())
    assert report["usage"]["requests"] == 96 and report["total_cost"] == pytest.approx(96 * 140 / 1e6)


def test_a_check_sees_the_masks_and_the_deciding_medium_comes_first(command, agents):
    command(max_rows=1)
    bodies = [request.body for request in agents.log]
    by_role = {body["response_format"]["json_schema"]["name"]: body["messages"][1]["content"] for body in bodies}
    kinds = {name: [part["type"] for part in parts] for name, parts in by_role.items()}
    assert kinds["reason"].index("input_audio") < kinds["reason"].index("image_url")
    assert kinds["recognise"].index("image_url") < kinds["recognise"].index("input_audio")
    assert (kinds["check"].count("image_url"), kinds["phrase"].count("image_url")) == (2, 1)
    systems = {body["messages"][0]["content"] for body in bodies[:3]}
    assert len(systems) == 3  # three personas


def test_masks_are_scored_as_any_others(command, make_rows, tmp_path):
    command()
    folder, out = tmp_path / "out" / "rows.masks", tmp_path / "scores"
    words = ["--predictions", folder, "--data_root", make_rows(12), "--split", "train", "--num_frames", 1]
    assert aurora_rl(["evaluate", *map(str, words), "--output_dir", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["overall"]["J"] == pytest.approx(1.0) and scores["overall"]["S"] == 0.0


def test_an_endpoint_that_fails_a_fifth_of_its_calls_loses_and_doubles_no_row(command, agents, tmp_path):
    kinds = ("500", "drop", "broken json", "half", "429:0")

    def plan(row: int, attempt: int) -> str:
        return kinds[(row + attempt) % 5] if (7 * row + attempt) % 5 == 0 else "good"

    agents.plan = plan
    assert command(max_attempts=20) == 0
    assert [record["row"] for record in records(tmp_path)] == list(range(12))
    assert sum(request.action in kinds for request in agents.log) >= len(agents.log) / 6
    assert_paid(tmp_path, 96)


def assert_paid(tmp_path: Path, replies: int) -> None:
    """Check that the cost of all runs is that of so many replies, each of them written down once."""
    assert len((tmp_path / "out" / "rows.usage.jsonl").read_text().splitlines()) == replies
    report = json.loads((tmp_path / "out" / "rows.report.json").read_text())
    assert report["total_cost"] == pytest.approx(replies * 140 / 1e6)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Ctrl-C, as a shell in the foreground lets Python handle it; one in the background has it ignored.

    Raised by hand inside a task, KeyboardInterrupt would stay in the task, and come up wherever that is collected.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, handler)


def test_a_killed_run_goes_on_with_the_rows_that_have_no_record(command, agents, tmp_path, monkeypatch, ctrl_c):
    append = RowJournal.append
    finished: list[int] = []

    def killed(self: RowJournal, record: dict) -> None:
        append(self, record)
        finished.append(record["row"])
        if len(finished) in (3, 7):
            ctrl_c()

    monkeypatch.setattr(RowJournal, "append", killed)
    for _ in range(2):
        with pytest.raises(SystemExit):
            command(concurrency=1)
    before = len((tmp_path / "out" / "rows.usage.jsonl").read_text().splitlines())
    assert len(agents.log) - 2 * 3 <= before <= len(agents.log)  # a row's first three replies may be under way
    agents.log.clear()
    assert command(concurrency=1) == 0
    assert_paid(tmp_path, before + len(agents.log))
    assert finished == list(range(12)) and [record["row"] for record in records(tmp_path)] == list(range(12))
    assert [mask.all() for mask in masks(tmp_path)] == [True, True, False] * 4


def test_a_row_without_readable_replies_fails_and_is_not_nothing(command, agents, tmp_path):
    agents.bodies["reason"] = reply({"reason": "hm"})
    assert command(max_attempts=2) == 0
    assert {record["outcome"] for record in records(tmp_path)} == {"nothing meant"}
    failures = [json.loads(line) for line in (tmp_path / "out" / "rows.failures.jsonl").read_text().splitlines()]
    assert [failure["row"] for failure in failures] == [0, 1, 3, 4, 6, 7, 9, 10]
    assert not (tmp_path / "out" / "rows.masks" / "0.npz").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text_segmenter": "sam4"}, "choose from sam3"),
        ({"text_segmenter": "aurora", "text_segmenter_model": "null"}, "needs `text_segmenter_model`"),
        ({"text_segmenter": "sam3", "text_segmenter_model": "null"}, "needs `text_segmenter_model`"),
        ({"text_segmenter": "grounded_sam2", "text_segmenter_model": "a"}, "needs two"),
        ({"agents": 9}, "expected 1 to 5"),
        ({"split": "tset"}, "tset"),
        ({"max_cost": -1}, "max_cost"),
    ],
)
def test_unusable_arguments_are_told(command, capsys, options, said):
    try:
        code = command(**options)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and said in capsys.readouterr().err


def test_rows_that_the_checks_mended_and_broke_are_counted(train_samples: list[AVSample], tmp_path: Path):
    rows = [sample for sample in train_samples if not sample.is_null][:3]
    for row, (first, last) in zip(rows, [(False, True), (True, False), (False, False)], strict=True):
        truth = load_clip(row).gt_masks
        for folder, is_right in ((tmp_path / "first", first), (tmp_path / "last", last)):
            folder.mkdir(exist_ok=True)
            np.savez(folder / f"{row.row}.npz", masks=truth if is_right else ~truth)
    changes = count_changes(train_samples, first=tmp_path / "first", last=tmp_path / "last")
    assert list(changes.values()) == [0, 1, 1, 1] and changes["mended"] == 1


def test_masks_that_a_kill_left_without_a_record_are_no_change(command, agents, tmp_path):
    command(max_rows=3)
    rows = tmp_path / "out" / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:2]))
    (tmp_path / "out" / "rows.first" / "2.npz").unlink()  # killed between the two files
    agents.bodies["recognise"] = reply({})
    command(max_rows=3, max_attempts=1)
    summary = json.loads((tmp_path / "out" / "rows.agents.json").read_text())
    assert (summary["rows"], sum(summary["changes"].values())) == (2, 2)


def test_a_row_whose_truth_has_another_size_is_left_out_of_the_changes(train_samples, tmp_path, caplog):
    row = next(sample for sample in train_samples if not sample.is_null)
    np.savez(tmp_path / f"{row.row}.npz", masks=np.ones((len(row.mask_paths), 2, 2), bool))
    assert not any(count_changes([row], first=tmp_path, last=tmp_path).values())
    assert f"sample {row.key} is left out of the changes" in caplog.text


@pytest.mark.parametrize("options", [{"evidence": "tracks"}, {"model": "weak"}, {"agents": 2}])
def test_an_output_is_not_resumed_with_other_settings(command, capsys, options):
    command(max_rows=1)
    assert command(max_rows=2, concurrency=2) == 0
    with pytest.raises(SystemExit):
        command(max_rows=2, **options)
    assert f"was begun with other {list(options)}: delete it, or choose another" in capsys.readouterr().err


def test_a_refused_first_run_binds_no_later_one(command, agents, tmp_path):
    agents.plan = lambda row, attempt: "401"
    assert command(max_rows=1, model="typo") == 1
    agents.plan = lambda row, attempt: "good"
    assert command(max_rows=1) == 0 and len(records(tmp_path)) == 1


def test_an_output_of_something_else_is_refused(command, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.jsonl").write_text('{"uid": "a", "row": 0, "steps": {}}\n')
    with pytest.raises(SystemExit):
        command()
    assert "holds records of something else" in capsys.readouterr().err


def test_only_the_oracle_is_shown_the_truth(train_samples: list[AVSample]):
    class Other(OracleSegmenter.__base__):
        def find(self, sample, clip, phrase):
            raise NotImplementedError

    assert read_clip(train_samples[0], Other(None)).gt_masks is None
    assert read_clip(train_samples[0], OracleSegmenter(None)).gt_masks is not None


def test_a_model_of_this_package_answers_phrases():
    """The model that comes with the package segments what it is asked for on a clip that comes with it."""
    sample = load_split(DataArguments(str(CLIPS), benchmark="clips", fps=2.0, num_frames=4), "test")[0]
    segmenter = AuroraSegmenter(str(MODEL))
    clip = read_clip(sample, segmenter)
    found = segmenter(sample, clip, f"the {sample.category}")
    assert found.masks.shape == clip.frames.shape[:3] and found.masks.dtype == bool and found.score is None


def test_agents_choose_among_tracks_of_the_segmenter(command, agents, tmp_path, capsys):
    agents.bodies["reason"] = reply({"reason": "it hums", "target": "1"})
    assert command(evidence="tracks") == 0
    found = {record["row"]: record for record in records(tmp_path)}
    assert found[0]["attempts"][0] | {"reason": ""} == {
        "phrase": "left drum",
        "score": 1.0,
        "verdict": "accept",
        "reason": "",
        "num_tracks": 1,
        "track": 1,
    }
    assert [found[row]["outcome"] for row in range(3)] == ["accepted at first", "accepted at first", "nothing found"]
    assert [mask.all() for mask in masks(tmp_path)] == [True, True, False] * 4
    by_role = {request.body["response_format"]["json_schema"]["name"]: request.body for request in agents.log}
    kinds = {name: [part["type"] for part in body["messages"][1]["content"]] for name, body in by_role.items()}
    assert [kinds[name].count("image_url") for name in ("phrase", "reason", "check")] == [1, 2, 3]
    schema = by_role["reason"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["target"]["enum"] == ["1", "another thing", "nothing"]


def test_tracks_of_a_model_that_finds_one_thing_are_refused(command, capsys):
    with pytest.raises(SystemExit):
        command(evidence="tracks", text_segmenter="aurora", text_segmenter_model=MODEL)
    assert "no tracks to choose among: use sam3" in capsys.readouterr().err
