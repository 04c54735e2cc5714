"""Memory and time of a run, estimated from its arguments and the model's config before anything is loaded.

workload     from arguments and clips to tokens, patches and masks of one pass
parameters   the model on the `meta` device: exact sizes of all weights and of the trained ones
activations  memory of a forward and backward pass, from parts of the model run on `meta`
peak         the memory that code on `meta` would take
flops        floating-point operations of a step
parts        the parts of an estimate, and the moments of a run that need them
storage      files that a run writes to disk
launch       how a run is spread over processes
estimate     the whole estimate by part, for each process, under ZeRO and offload
answering    the estimate for a model that answers and is not trained
by_hand      the estimate for the command `aurora-rl footprint`
limits       memory that a process may take
report       the table, and the check that stops a recipe
"""

from aurora_rl.footprint.answering import estimate_answering
from aurora_rl.footprint.estimate import Footprint, estimate_footprint, live_teacher
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.limits import Limits
from aurora_rl.footprint.parts import Part
from aurora_rl.footprint.report import DoesNotFitError, check_footprint, complaint, render
from aurora_rl.footprint.workload import Clips

__all__ = [
    "Clips",
    "DoesNotFitError",
    "Footprint",
    "Launch",
    "Limits",
    "Part",
    "check_footprint",
    "complaint",
    "estimate_answering",
    "estimate_footprint",
    "live_teacher",
    "render",
]
