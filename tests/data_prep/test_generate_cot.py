import json
import logging
import os
import re
from pathlib import Path

import pytest

from aurora_rl.scripts.generate_cot import main

#: What happens to rows n, n + 20, n + 40, ...: one action an attempt, "good" after the last.
PLAN = {
    1: ["429:0.02"],
    2: ["429", "429"],
    3: ["500"],
    4: ["half"],
    5: ["broken json"],
    6: ["no json"],
    7: ["wrong category"],
    8: ["drop"],
    9: ["leak"],
    10: ["wrong category"] * 3,
    11: ["503"] * 3,
    12: ["400"],
    13: ["no step"],
    14: ["cut off"],
    15: ["html"],
    16: ["label"],
    17: ["500", "drop", "wrong category"],
    18: ["502", "504"],
}


def plan(row: int, attempt: int) -> str:
    if row % 100 == 0:
        return "slow"
    actions = PLAN.get(row % 20, [])
    return actions[attempt - 1] if attempt <= len(actions) else "good"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_thousand_rows_go_through_a_bad_endpoint_and_nothing_is_lost_or_doubled(
    make_rows, endpoint, run_options, tmp_path, capsys
):
    endpoint.plan = plan
    options = run_options(make_rows(1000), endpoint.url, max_attempts=3, input_price=2, output_price=10)
    assert main(options) == 0

    chains, failures = (read_lines(tmp_path / "out" / f"chains{kind}.jsonl") for kind in ("", ".failures"))
    fails = {10: "wrong_category", 11: "server_error", 12: "bad_request", 17: "wrong_category"}
    assert [chain["row"] for chain in chains] == [row for row in range(1000) if row % 20 not in fails]
    assert {failure["row"]: failure["reason"] for failure in failures} == {
        row: fails[row % 20] for row in range(1000) if row % 20 in fails
    }
    assert [failure["row"] for failure in failures] == sorted(failure["row"] for failure in failures)
    assert {failure["attempts"] for failure in failures if failure["reason"] != "bad_request"} == {3}

    report = json.loads((tmp_path / "out" / "chains.report.json").read_text())
    assert {name: report[name] for name in ("rows", "kept", "answered", "failed", "not_asked", "stopped")} == {
        "rows": 1000,
        "kept": 0,
        "answered": 800,
        "failed": 200,
        "not_asked": 0,
        "stopped": None,
    }
    assert report["failures"] == {"bad_request": 50, "server_error": 50, "wrong_category": 100}
    assert report["failed_attempts"] == {
        "bad_request": 50,  # 12
        "broken_body": 100,  # 5, 15
        "connection": 150,  # 4, 8, 17
        "cut_off": 50,  # 14
        "invalid_json": 50,  # 6
        "leak": 50,  # 9
        "missing_step": 50,  # 13
        "rate_limit": 150,  # 1, 2, 2
        "server_error": 350,  # 3, 11 three times, 17, 18 twice
        "wrong_category": 250,  # 7, 10 three times, 17
    }
    assert report["repairs"] == {"label": 50}  # 16
    # Replies that a model wrote, good or bad: 800 good ones, those of 6, 9, 13, 14 once, and the wrong categories.
    assert report["usage"] == {
        "requests": 1250,
        "prompt_tokens": 125_000,
        "completion_tokens": 25_000,
        "uncounted": 0,
    }
    assert report["cost"] == pytest.approx(125_000 * 2 / 1e6 + 25_000 * 10 / 1e6)
    assert len(endpoint.log) == 1250 + 50 + 100 + 150 + 150 + 350
    assert "800 got one, 200 failed" in capsys.readouterr().out


def test_failed_rows_are_asked_again_by_the_next_run_and_finished_ones_never(
    make_rows, endpoint, run_options, tmp_path
):
    root = make_rows(30)
    endpoint.plan = lambda row, attempt: "500" if row in (4, 7) and attempt <= 2 else "good"
    options = run_options(root, endpoint.url, max_attempts=2)
    assert main(options) == 0
    assert [failure["row"] for failure in read_lines(tmp_path / "out/chains.failures.jsonl")] == [4, 7]
    first_run = len(endpoint.log)
    assert main(options) == 0
    assert sorted(request.row for request in endpoint.log[first_run:]) == [4, 7]
    assert [chain["row"] for chain in read_lines(tmp_path / "out/chains.jsonl")] == list(range(30))
    assert read_lines(tmp_path / "out/chains.failures.jsonl") == []
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert (report["kept"], report["answered"], report["usage"]["requests"]) == (28, 2, 2)
    assert report["total_usage"]["requests"] == 30


def test_a_record_is_what_the_loader_reads_and_the_answer_is_ours(make_rows, endpoint, run_options, tmp_path):
    from aurora_rl.assembly.arguments import DataArguments
    from aurora_rl.assembly.benchmarks import load_split

    root = make_rows(3)
    out = root / "chains.jsonl"
    assert main(run_options(root, endpoint.url, output=out)) == 0
    assert read_lines(out)[1] == {
        "uid": "clip-b_0_1000_hair-dryer_1",
        "row": 1,
        "split": "train",
        "category": "hair-dryer",
        "exp": "The thing of row 1.",
        "steps": {
            "look": "I see a hair-dryer in row 1.",
            "listen": "I hear a low hum from the left.",
            "read": "It asks for what hums.",
        },
        "answer": "the target is the hair-dryer. It is [SEG].",
        "generator": "strong",
        "verified": False,
    }
    args = DataArguments(data_root=str(root), num_frames=1, chains="chains.jsonl")
    assert [sample.chain.splitlines()[-1] for sample in load_split(args, "train")] == [
        "Answer: the target is the drum. It is [SEG].",
        "Answer: the target is the hair-dryer. It is [SEG].",
        "Answer: there is no such target. It is [SEG].",
    ]


@pytest.mark.parametrize("status", ["401", "403", "404", "429:quota"])
def test_a_refusal_ends_the_run_at_once_and_keeps_what_is_finished(status, make_rows, endpoint, run_options, tmp_path):
    endpoint.plan = lambda row, attempt: status if row >= 5 else "good"
    assert main(run_options(make_rows(30), endpoint.url, concurrency=1)) == 1
    assert [request.row for request in endpoint.log] == [0, 1, 2, 3, 4, 5]
    assert [chain["row"] for chain in read_lines(tmp_path / "out/chains.jsonl")] == [0, 1, 2, 3, 4]
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert (report["failed"], report["not_asked"]) == (0, 25)
    assert report["stopped"].startswith(f"the endpoint refuses (status {status[:3]}")


#: Statuses that end a run elsewhere, or fail a row, and here concern the row.
ROWS_REFUSED = [
    (403, {"error": {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["violence"]}}}),
    (403, {"detail": "This clip is not for us"}),
    (404, {"error": {"message": "The image could not be read"}}),
    (401, {"error": {"message": "no", "code": "content_policy_violation"}}),
    (413, {"error": "request entity too large"}),
    (422, {"detail": [{"loc": ["body", "messages"], "msg": "bad image"}]}),
    (451, {}),
    (418, {"message": {"detail": "no tea"}}),
]


@pytest.mark.parametrize(("status", "body"), ROWS_REFUSED)
@pytest.mark.parametrize("refused_row", [0, 5])
def test_a_row_that_is_refused_fails_and_the_run_goes_on(
    status, body, refused_row, make_rows, endpoint, run_options, tmp_path
):
    endpoint.bodies["refused"] = (status, json.dumps(body))
    endpoint.plan = lambda row, attempt: "refused" if row == refused_row else "good"
    assert main(run_options(make_rows(30), endpoint.url, concurrency=1)) == 0
    (failure,) = read_lines(tmp_path / "out/chains.failures.jsonl")
    assert (failure["row"], failure["attempts"]) == (refused_row, 1)
    assert f"status {status}: " in failure["detail"]
    assert len(read_lines(tmp_path / "out/chains.jsonl")) == 29


RUNS_REFUSED = [
    (401, {"detail": "Unauthorized"}, "There is no key"),
    (403, {"error": {"message": "Forbidden"}}, "There is no key"),
    (400, {"error": {"message": "API key not valid."}}, "There is no key"),
    (404, {"detail": "Not Found"}, "Check base_url"),
    (
        404,
        {"error": {"code": "model_not_found", "message": "The model `strong` does not exist"}},
        "model, which is",
    ),
    (402, {"error": "Insufficient Balance"}, "no money or quota left"),
    (429, {"error": {"code": "insufficient_quota", "message": "You exceeded it"}}, "no money or quota left"),
]


@pytest.mark.parametrize(("status", "body", "advice"), RUNS_REFUSED)
def test_a_wrong_key_address_or_purse_ends_the_run_with_the_words_and_what_to_do(
    status, body, advice, make_rows, endpoint, run_options, tmp_path
):
    endpoint.bodies["refused"] = (status, json.dumps(body))
    endpoint.plan = lambda row, attempt: "refused"
    assert main(run_options(make_rows(30), endpoint.url, concurrency=1)) == 1
    assert len(endpoint.log) == 1
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert (report["failed"], report["not_asked"]) == (0, 30)
    assert f"status {status}: " in report["stopped"] and advice in report["stopped"]


def test_a_run_whose_first_rows_are_all_refused_alike_ends_in_words(make_rows, endpoint, run_options, tmp_path):
    endpoint.judge = lambda body, action: "400"
    assert main(run_options(make_rows(30), endpoint.url, concurrency=1)) == 1
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert (report["failed"], report["not_asked"]) == (8, 22)
    assert report["stopped"].startswith("the endpoint refused the first 8 rows alike")
    assert "status 400 for Bearer" in report["stopped"]


def test_rows_refused_in_other_words_or_by_moderation_do_not_end_a_run(make_rows, endpoint, run_options, tmp_path):
    endpoint.bodies |= {f"odd {row}": (400, f'{{"detail": "bad {"abcdefghijkl"[row]}"}}') for row in range(12)}
    endpoint.bodies["flagged"] = (403, '{"detail": "Your input was flagged"}')
    endpoint.plan = lambda row, attempt: f"odd {row}" if row < 12 else "flagged" if row < 24 else "good"
    assert main(run_options(make_rows(30), endpoint.url, concurrency=1)) == 0
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert report["failures"] == {"bad_request": 12, "moderated": 12} and report["answered"] == 6


def test_rows_that_failed_before_are_asked_last(make_rows, endpoint, run_options, tmp_path):
    endpoint.plan = lambda row, attempt: "400" if row in (1, 3) else "good"
    options = run_options(make_rows(6), endpoint.url, concurrency=1)
    assert main([*options, "--max_rows", "4"]) == 0
    assert main(options) == 0
    assert [request.row for request in endpoint.log] == [0, 1, 2, 3, 4, 5, 1, 3]
    assert [chain["row"] for chain in read_lines(tmp_path / "out/chains.jsonl")] == [0, 2, 4, 5]


def test_the_run_ends_cleanly_at_max_cost_and_goes_on_with_a_higher_one(make_rows, endpoint, run_options, tmp_path):
    root = make_rows(30)
    # A row costs 100 x 1 + 20 x 5 = 200 millionths.
    prices = {"input_price": 1, "output_price": 5, "concurrency": 1}
    assert main(run_options(root, endpoint.url, max_cost=0.001, **prices)) == 1
    assert len(endpoint.log) == 5
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert (report["answered"], report["not_asked"], report["cost"]) == (5, 25, pytest.approx(0.001))
    assert report["stopped"] == "all runs cost 0.0010, max_cost is 0.001"
    assert main(run_options(root, endpoint.url, max_cost=0.001, **prices)) == 1
    assert len(endpoint.log) == 5
    assert main(run_options(root, endpoint.url, max_cost=1, **prices)) == 0
    assert len(endpoint.log) == 30


def test_max_rows_means_the_first_rows_however_often_it_runs(make_rows, endpoint, run_options, tmp_path):
    for _ in range(2):
        assert main(run_options(make_rows(30), endpoint.url, max_rows=4)) == 0
    assert sorted(request.row for request in endpoint.log) == [0, 1, 2, 3]


def test_a_dead_endpoint_ends_the_run_before_all_rows_have_failed(make_rows, endpoint, run_options, tmp_path):
    endpoint.plan = lambda row, attempt: "500"
    options = run_options(make_rows(30), endpoint.url, concurrency=1, max_attempts=1, max_failures_in_a_row=3)
    assert main(options) == 1
    report = json.loads((tmp_path / "out/chains.report.json").read_text())
    assert (report["failed"], report["not_asked"]) == (3, 27)
    assert "3 rows in a row failed: see " in report["stopped"]


def test_a_run_that_gave_nothing_at_all_is_no_success(make_rows, endpoint, run_options):
    endpoint.plan = lambda row, attempt: "400"
    assert main(run_options(make_rows(3), endpoint.url)) == 1


def test_unreadable_media_fail_their_row_and_name_the_file(make_rows, endpoint, run_options, tmp_path):
    root = make_rows(31)
    frame = root / "media" / "clip-b_0_1000" / "frames" / "0.jpg"
    frame.write_bytes(frame.read_bytes()[:100])
    assert main(run_options(root, endpoint.url)) == 0
    failures = read_lines(tmp_path / "out/chains.failures.jsonl")
    assert [failure["row"] for failure in failures] == list(range(1, 31, 3))
    assert all(failure["reason"] == "media" and str(frame) in failure["detail"] for failure in failures)
    assert {request.row % 3 for request in endpoint.log} == {0, 2}


def test_the_key_is_sent_and_shown_nowhere(make_rows, endpoint, run_options, tmp_path, capfd, caplog, monkeypatch):
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", f"{key}\n")
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    root = make_rows(30)
    # Errors quote the key; so does a status that ends the run.
    endpoint.plan = lambda row, attempt: ["400", "500", "429", "drop", "good"][row % 5] if row < 20 else "401"
    bounds = {"max_attempts": 1, "max_rate_limits": 1, "concurrency": 1}
    assert main(run_options(root, endpoint.url, api_key_env="MY_KEY", **bounds)) == 1
    assert {request.headers["authorization"] for request in endpoint.log} == {f"Bearer {key}"}
    captured = capfd.readouterr()
    assert "[key]" in (tmp_path / "out/chains.failures.jsonl").read_text()  # what was quoted is left, without the key
    assert "MY_KEY" in captured.out
    texts = {"stdout": captured.out, "stderr": captured.err, "log": caplog.text}
    texts |= {str(path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(texts) == 7
    for name, text in texts.items():
        assert key not in text and "very-secret" not in text, name


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({"api_key_env": "sk-very-secret"}, {}, "is no name of an environment variable"),
        ({"api_key_env": "MY_KEY"}, {"MY_KEY": "sk-very-secret\nmore"}, "characters that no key has"),
        ({"api_key_env": "MY_KEY"}, {"MY_KEY": "sk-very-sëcret"}, "characters that no key has"),
        ({"base_url": "http://me:very-secret@127.0.0.1:1/v1"}, {}, "keys come from the environment only"),
        ({"base_url": "http://127.0.0.1:1/v1?key=very-secret"}, {}, "keys come from the environment only"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_without_being_shown(
    options, environment, message, make_rows, run_options, capsys, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_info:
        main(run_options(make_rows(3), **{"url": "http://127.0.0.1:1/v1", **options}))
    said = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message in said
    assert "very-s" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "imagenet"}, "unknown benchmark 'imagenet'"),
        ({"split": "dev"}, "has no split 'dev'"),
        ({"base_url": "localhost:8000"}, r"expected http\(s\)://host"),
        ({"max_cost": 5}, "max_cost is given without prices"),
        ({"input_price": 5}, "a cost needs both"),
        ({"media": "smell"}, "choose from '?frames[+]audio'?, '?frames'?, '?none"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"response_format": "xml"}, "choose from json_schema, json_object, none"),
        ({"extra_body": "[1]"}, "expected a JSON object"),
    ],
)
def test_options_that_make_no_sense_are_told_without_a_traceback(options, message, make_rows, run_options, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(run_options(make_rows(3), **{"url": "http://127.0.0.1:1/v1", **options}))
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_two_runs_into_one_file_are_refused(make_rows, endpoint, run_options, tmp_path, capsys):
    from aurora_rl.files.journal import RowJournal

    with RowJournal(tmp_path / "out" / "chains.jsonl"), pytest.raises(SystemExit):
        main(run_options(make_rows(3), endpoint.url))
    assert "another run writes to" in capsys.readouterr().err
    assert endpoint.log == []


def test_a_config_may_name_the_files_that_are_to_be_made(make_rows, endpoint, run_options):
    names = {"chains": "not-there-yet.jsonl", "reflections": "not-there-yet.jsonl"}
    assert main(run_options(make_rows(3), endpoint.url, **names)) == 0


def test_nothing_of_the_environment_is_needed_for_a_server_without_keys(make_rows, endpoint, run_options, monkeypatch):
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    assert main(run_options(make_rows(3), endpoint.url)) == 0
