"""Write the synthetic Ref-AVS benchmark: moving, sounding shapes in Ref-AVSBench's layout.

    python data_prep/make_synthetic.py --output_dir data/synthetic --num_workers 2

On one CPU core: 4 ms a clip of the default 4 frames of 64 px, 60 ms a clip of 10 frames of 224 px (measured).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from aurora_rl.assembly.options import OptionParser
from aurora_rl.files.existing import check_writable_folder
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, whose options are the fields of `SyntheticConfig`, and write the benchmark."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the benchmark is written to")
    for field in dataclasses.fields(SyntheticConfig):
        parser.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=field.metadata["help"],
        )
    parser.add_argument(
        "--num_workers", type=int, default=1, help="number of processes; the output does not depend on it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the benchmark that is in the folder")
    args = vars(parser.parse_args(argv))
    out, num_workers, overwrite = args.pop("output_dir"), args.pop("num_workers"), args.pop("overwrite")
    try:
        check_writable_folder(out, name="--output_dir")
        write_synthetic_benchmark(out, SyntheticConfig(**args), num_workers=num_workers, overwrite=overwrite)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
