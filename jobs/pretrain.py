"""Stage 2: continued pre-training while lambda takes the layers from full precision to ternary.

ray job submit --working-dir . -- python -m jobs.pretrain --config configs/pretrain/smollm2_135m.yaml run=$PWD/runs/mine
"""

from jobs.cli import run_job
from jobs.training import run_training
from wfray.config.train import TrainConfig

if __name__ == "__main__":
    run_job(TrainConfig, run_training)
