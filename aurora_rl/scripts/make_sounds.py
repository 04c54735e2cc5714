"""Write sounds without pictures, in AVQA's form: one, two or three things sound at a time under noise.

    python data_prep/make_sounds.py --output_dir data/sounds

On one CPU core: 1 ms a clip.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from aurora_rl.assembly.options import OptionParser
from aurora_rl.files.existing import check_writable_folder
from aurora_rl.synthetic.sounds import SoundsConfig, write_sounds


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, whose options are the fields of `SoundsConfig`, and write the data."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the data are written to")
    for field in dataclasses.fields(SoundsConfig):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=field.metadata["help"])
    parser.add_argument("--overwrite", action="store_true", help="replace such data that are in the folder")
    args = vars(parser.parse_args(argv))
    out, overwrite = args.pop("output_dir"), args.pop("overwrite")
    try:
        check_writable_folder(out, name="--output_dir")
        write_sounds(out, SoundsConfig(**args), overwrite=overwrite)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
