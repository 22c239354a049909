"""Block diffusion: an autoregressive student, ternary or not, learns to write a block of tokens at a time.

ray job submit --working-dir . -- python -m jobs.diffuse --config configs/diffuse/smollm2_135m.yaml run=$PWD/runs/mine
"""

from jobs.cli import run_job
from jobs.training import run_training
from wfray.config.diffuse import DiffuseConfig

if __name__ == "__main__":
    run_job(DiffuseConfig, run_training)
