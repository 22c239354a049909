"""Run a study as Ray jobs, or go on with it, and write its table and plot.

    python -m benchmarks.quality --config benchmarks/quality/sentiment.yaml [seeds='[0, 1, 2]'] [arms='[fp_sft, bitdistill]']

The stages run one after the other on a cluster of the study's own, each as a job; run the same command again after whatever ended
it, or with more seeds or arms, and what is done is skipped.
"""

from benchmarks.quality.inputs import prepare
from benchmarks.quality.study import Study
from benchmarks.quality.table import write_results
from jobs.cli import run_job
from jobs.pipeline import ROOT
from jobs.pipeline import main as run_pipeline
from wfray.runs import resolve_home


def main(study: Study) -> None:
    """Inputs, pipeline, table."""
    run = resolve_home(study.run)
    run.mkdir(parents=True, exist_ok=True)
    prepare(study, run)
    run_pipeline(study.pipeline(ROOT, run), keep=False)
    print(write_results(study, run))
    print(f"written: {run}/results.json, results.txt, results.svg")


if __name__ == "__main__":
    run_job(Study, main)
