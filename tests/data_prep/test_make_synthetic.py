import pytest

from aurora_rl.scripts.make_synthetic import main
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark

SMALL = ["--train", "1", "--val", "0", "--test_s", "0", "--test_u", "1", "--test_n", "0"]


def test_the_command_writes_what_the_function_writes(tmp_path):
    main(["--output_dir", str(tmp_path / "command"), *SMALL, "--seed", "7", "--seconds", "1.5"])
    config = SyntheticConfig(train=1, val=0, test_s=0, test_u=1, test_n=0, seed=7, seconds=1.5)
    write_synthetic_benchmark(tmp_path / "function", config)
    for name in ("metadata.csv", "chains.jsonl", "media/train-00000_0_1500/audio.wav"):
        assert (tmp_path / "command" / name).read_bytes() == (tmp_path / "function" / name).read_bytes()


def test_a_full_folder_and_a_bad_option_are_told_without_a_traceback(tmp_path, capsys):
    main(["--output_dir", str(tmp_path / "out"), *SMALL])
    for arguments, message in [
        (["--output_dir", str(tmp_path / "out"), *SMALL], "is not empty"),
        (["--output_dir", str(tmp_path / "new"), "--size", "3"], "size=3 is too small"),
    ]:
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err
    main(["--output_dir", str(tmp_path / "out"), *SMALL, "--overwrite"])
