"""Stage 3: BitDistill, cross-entropy with the teacher's logits and attention relations.

ray job submit --working-dir . -- python -m jobs.distill --config configs/distill/smollm2_135m.yaml run=$PWD/runs/mine
"""

from jobs.cli import run_job
from jobs.training import run_training
from wfray.config.train import TrainConfig

if __name__ == "__main__":
    run_job(TrainConfig, run_training)
