"""Run a list of stages in order, each as a Ray job; what is done already is skipped.

    python -m jobs.pipeline --config configs/quickstart.yaml [--keep] [run=runs/mine] [until=pretrain]

Starts a Ray cluster of its own and takes it down at the end, unless `--keep` or an `address` of a running one is given. With
`--keep` on a run that is done, what it exported is served again. Ctrl-C or SIGTERM ends the stage and the cluster in order.
"""

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from cluster.local import LocalCluster, start_local_cluster
from cluster.submission import run_stage
from jobs.cli import run_job
from jobs.memory import ResidentMemory
from jobs.progress import ProgressView
from jobs.stages import pending_stages, plan_stages
from wfray.config.pipeline import PipelineConfig
from wfray.report import write_report
from wfray.runs import Manifest, resolve_home, write_json

ROOT = Path(__file__).resolve().parent.parent


def main(config: PipelineConfig, keep: bool) -> None:
    """Plan, run what is pending, write the report."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run, started = resolve_home(config.run), time.time()
    if config.cluster is not None:
        # Where the jobs' relative paths stand, those of the plan do.
        os.environ["WFRAY_HOME"] = str(run.parent)
    planned = plan_stages(config, run, ROOT)
    pending = pending_stages(planned, keep)
    with ExitStack() as stack:
        view = stack.enter_context(ProgressView([stage.name for stage in planned], run))
        memory = stack.enter_context(ResidentMemory([os.getpid()]))
        dashboard = config.address or ""
        if pending and config.cluster is not None:
            print(f"starting a Ray cluster of {config.cluster.num_cpus} CPUs on this machine", flush=True)
            cluster = start_local_cluster(config.cluster, home=run.parent, keep=keep)
            if keep:
                stack.callback(say_kept, cluster)
            else:
                stack.enter_context(cluster)
            memory.add_root(cluster.process.pid)
            dashboard = cluster.dashboard
        for stage in planned:
            if stage.name in pending:
                run_stage(stage.name, stage.command, dashboard, ROOT, view, log=run / "logs" / f"{stage.name}.log")
            else:
                view.finish(stage.name, "skipped", 0.0)
        if pending:
            record_cost(config, run, time.time() - started, memory.peak_bytes, complete=len(pending) == len(config.stages))
        if keep:
            say_served([run / stage.name for stage in planned if stage.job == "serve"])
    print(f"report: {write_report(run)}")


def record_cost(config: PipelineConfig, run: Path, seconds: float, peak_bytes: int, complete: bool) -> None:
    """Print what the run took beside its budget; the report shows that of the run that did every stage."""
    minutes, gigabytes = seconds / 60, peak_bytes / 2**30
    print(f"took {minutes:.1f} of {config.max_minutes:.0f} minutes, peak resident memory {gigabytes:.1f} of {config.max_memory_gb:.0f} GB")
    if complete or not (run / "pipeline.json").exists():
        cost = {"wall_seconds": round(seconds, 1), "peak_memory_bytes": peak_bytes, "all_stages": complete}
        write_json(run / "pipeline.json", {**cost, "max_minutes": config.max_minutes, "max_memory_gb": config.max_memory_gb})


def say_kept(cluster: LocalCluster) -> None:
    """Tell how to look into and how to end a cluster that stays."""
    print(f"the cluster stays up: dashboard {cluster.dashboard}, logs in {cluster.session}; end it with: kill {cluster.process.pid}")


def say_served(stages: list[Path]) -> None:
    """Tell how to ask the models that stages, given by their directories, serve."""
    for manifest in filter(None, map(Manifest.read, stages)):
        url, models = manifest.figures["url"], manifest.figures["models"]
        body = json.dumps({"model": min(models), "messages": [{"role": "user", "content": "Hello"}]})
        print(f"{', '.join(sorted(models))} served with the OpenAI API at {url}, for example:")
        print(f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'")


if __name__ == "__main__":
    run_job(PipelineConfig, main, flags={"keep": "leave the local cluster and its applications running at the end"})
