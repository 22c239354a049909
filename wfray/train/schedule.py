"""Learning-rate schedules: linear warm-up, then cosine, warm-up/stable/decay (wsd) or constant."""

import math

from wfray.config.optimizer import LearningRateSchedule


def learning_rate_factor(schedule: LearningRateSchedule, step: int, num_steps: int) -> float:
    """The factor on the peak rate for step `step` (from 0) of `num_steps`.

    Warm-up rises linearly and reaches 1 at its last step; cosine falls to `final_fraction` at the end of the stage; wsd stays
    at 1 and falls linearly to `final_fraction` over the last `decay_fraction` of the steps.
    """
    num_warmup = math.ceil(schedule.warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    floor = schedule.final_fraction
    match schedule.shape:
        case "constant":
            return 1.0
        case "cosine":
            done = (step - num_warmup) / max(1, num_steps - num_warmup)
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        case "wsd":
            remaining = (num_steps - step) / max(1, math.ceil(schedule.decay_fraction * num_steps))
            return floor + (1 - floor) * min(1.0, remaining)
