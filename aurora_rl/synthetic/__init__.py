"""A small synthetic Ref-AVS benchmark: coloured shapes that move and sound, written in Ref-AVSBench's own layout.

It stands where a download would: `write_synthetic_benchmark` leaves jpg frames, wav, png masks, metadata.csv and
chains.jsonl on disk, and from there on the demo and the tests walk the same path as the real data.

    config      how much of what
    looks       what each category looks like
    timbres     what each category sounds like
    scene       who is in view, where, and who sounds when; pixels and waveform
    references  sentences that point at exactly one object (or at nothing) and their gold chains
    writer      the files
"""

from aurora_rl.synthetic.config import SyntheticConfig
from aurora_rl.synthetic.writer import write_synthetic_benchmark

__all__ = ["SyntheticConfig", "write_synthetic_benchmark"]
