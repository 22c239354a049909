"""Model families, conversion of a full-precision checkpoint into a ternary student, saving and loading, the forward pass."""

from wfray.student.calibrate import calibrate, calibration_rows
from wfray.student.checkpoint import load_original, load_student, save_student
from wfray.student.compensate import compensate
from wfray.student.convert import convert
from wfray.student.forward import BodyOutput, hidden_states, lm_head_weight, run_body
from wfray.student.original import materialize
from wfray.student.weights import Weights

__all__ = [
    "BodyOutput",
    "Weights",
    "calibrate",
    "calibration_rows",
    "compensate",
    "convert",
    "hidden_states",
    "lm_head_weight",
    "load_original",
    "load_student",
    "materialize",
    "run_body",
    "save_student",
]
