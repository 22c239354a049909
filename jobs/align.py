"""Stage 1.9: the layers of the converted student are drawn to the teacher's.

ray job submit --working-dir . -- python -m jobs.align --config configs/align/smollm2_135m.yaml run=$PWD/runs/mine
"""

from jobs.cli import run_job
from jobs.training import run_training
from wfray.config.train import TrainConfig

if __name__ == "__main__":
    run_job(TrainConfig, run_training)
