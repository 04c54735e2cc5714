"""A small synthetic Ref-AVS benchmark: coloured shapes that move and sound, written in Ref-AVSBench's own layout.

It takes the place of a download: `write_synthetic_benchmark` writes jpg frames, wav, png masks, metadata.csv and
chains.jsonl, and the demo and the tests read them by the same code as the real data.

    config      number and size of the clips
    looks       shape and colour of each category
    timbres     sound of each category
    scene       objects in view and their places, sounds and their times; pixels and waveform
    references  sentences that point at exactly one object (or at nothing) and their gold chains
    writer      the files
    sounds      another benchmark: sounds alone under noise, in AVQA's form
"""

from aurora_rl.synthetic.config import SyntheticConfig
from aurora_rl.synthetic.writer import write_synthetic_benchmark

__all__ = ["SyntheticConfig", "write_synthetic_benchmark"]
