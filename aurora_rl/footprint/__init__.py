"""Memory and time of a run, estimated from its arguments and the model's config before anything is loaded.

workload     arguments, clips -> tokens, patches and masks that a process has in hand
parameters   the model on the `meta` device: exact sizes of weights and of what is trained
activations  parts of the model run on `meta`: what a forward and backward pass keeps
parts        what is added up, and when it is there
storage      what a run writes to disk
estimate     all of it by part, for each process, under ZeRO and offload
answering    the same of a model that answers and is not trained
limits       what a process may take
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
