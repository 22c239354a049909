"""The `wf` command: clusters, jobs and files, each verb with `--dry-run` where it would change something.

wf up configs/cluster/nebius.yaml            wf train -m smollm2_135m -s 2 --cloud nebius
wf status | cost | dashboard | down NAME     wf submit STAGE | dlm | eval | serve | runs | logs | cancel
wf sync                                      the working directory to a development host
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from cluster import jobs, lifecycle
from cluster.dashboard import dashboard
from cluster.sync import main as sync
from wfray.config.cluster import ClusterConfig

STAGES = {"1": "convert", "1.9": "align", "2": "pretrain", "3": "distill"}
JOBS = ("pack", "teacher", "convert", "align", "pretrain", "distill", "diffuse", "export", "evaluate", "serve")
Arguments = argparse.Namespace
Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: list[str] | None = None) -> None:
    """Run one verb; a user's mistake ends it with exit code 2 and one message."""
    parser = argparse.ArgumentParser(prog="wf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (add_cluster_verbs, add_job_verbs, add_stage_verbs):
        add(verbs)
    command = verbs.add_parser("sync", help="send the working directory to a development host", add_help=False)
    command.set_defaults(run=None)
    arguments, rest = parser.parse_known_args(argv)
    try:
        if arguments.run is None:
            sync(rest)
        else:
            take_rest(parser, arguments, rest)
            arguments.run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def take_rest(parser: argparse.ArgumentParser, arguments: Arguments, rest: list[str]) -> None:
    """argparse takes `key=value` in one place only; those that stand elsewhere are overrides too."""
    if strange := [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(arguments, "overrides")]:
        parser.error(f"unknown arguments: {' '.join(strange)}")
    if rest:
        arguments.overrides += rest


def verb(verbs: Parsers, name: str, text: str, run: Callable[[Arguments], None]) -> argparse.ArgumentParser:
    """A new verb."""
    parser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def add_cluster_verbs(verbs: Parsers) -> None:
    """up, down, status, cost, dashboard."""
    up = verb(verbs, "up", "make a cluster, or bring one's own up to its file", run_up)
    up.add_argument("config", help="configs/cluster/*.yaml")
    up.add_argument("overrides", nargs="*", metavar="key=value")
    up.add_argument("--dry-run", action="store_true", help="print commands and YAML exactly as they would be, and the price")
    down = verb(verbs, "down", "take a cluster of one's own down, workers first", lambda a: lifecycle.down(a.name, a.dry_run, a.abandon))
    down.add_argument("name")
    down.add_argument("--dry-run", action="store_true")
    down.add_argument("--abandon", action="store_true", help="though its head cannot be reached; its workers then delete themselves")
    status = verb(verbs, "status", "what a cluster is doing and has spent", lambda a: lifecycle.status(a.name, a.json))
    status.add_argument("name", nargs="?")
    status.add_argument("--json", action="store_true")
    cost = verb(verbs, "cost", "an estimate for a file, what was spent for a cluster", lambda a: lifecycle.cost(a.target, a.overrides))
    cost.add_argument("target", help="configs/cluster/*.yaml, or the name of a cluster")
    cost.add_argument("overrides", nargs="*", metavar="key=value")
    look = verb(verbs, "dashboard", "tunnels to a cluster's dashboards", lambda a: dashboard(a.name, a.dry_run))
    look.add_argument("name")
    look.add_argument("--dry-run", action="store_true")


def run_up(arguments: Arguments) -> None:
    """`wf up`."""
    lifecycle.up(ClusterConfig.load(arguments.config, arguments.overrides), arguments.dry_run)


def add_place(parser: argparse.ArgumentParser) -> None:
    """On which cluster."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--cluster", "-c", help="name of a cluster that wf up made")
    place.add_argument("--cloud", choices=["nebius", "runpod"], help="the one cluster there")
    place.add_argument("--address", help="URL of the dashboard of any Ray cluster")


def place_of(arguments: Arguments) -> dict[str, str | None]:
    """The same for the functions of `cluster.jobs`."""
    cluster = (
        jobs.only_cluster_on(arguments.cloud).name if arguments.cloud and not getattr(arguments, "dry_run", False) else arguments.cluster
    )
    return {"cluster": cluster, "address": arguments.address}


def add_job_verbs(verbs: Parsers) -> None:
    """runs, logs, cancel."""
    add_place(verb(verbs, "runs", "the jobs of a cluster", lambda a: jobs.runs(**place_of(a))))
    logs = verb(verbs, "logs", "follow a job's output", lambda a: jobs.logs(a.job, **place_of(a)))
    logs.add_argument("job")
    add_place(logs)
    cancel = verb(verbs, "cancel", "end one job of one's own", lambda a: jobs.cancel(a.job, dry_run=a.dry_run, **place_of(a)))
    cancel.add_argument("job")
    cancel.add_argument("--dry-run", action="store_true")
    add_place(cancel)


def add_stage_verbs(verbs: Parsers) -> None:
    """submit, and its short forms: train, dlm, eval, serve."""
    submit = verb(verbs, "submit", "run a stage on a cluster", lambda a: send(a, a.stage, a.config))
    submit.add_argument("stage", choices=JOBS)
    submit.add_argument("--config", required=True)
    add_sending(submit)
    train = verb(verbs, "train", "run a training stage of a model", lambda a: send(a, STAGES[a.stage], preset(STAGES[a.stage], a.model)))
    train.add_argument("--model", "-m", required=True, help="a model with files in configs/, such as smollm2_135m")
    train.add_argument("--stage", "-s", required=True, choices=list(STAGES), help="1 convert, 1.9 align, 2 pretrain, 3 distill")
    add_sending(train)
    for name, stage, text in (
        ("dlm", "diffuse", "make a block-diffusion student"),
        ("eval", "evaluate", "score"),
        ("serve", "serve", "serve"),
    ):
        short = verb(verbs, name, f"{text}, with configs/{stage}/MODEL.yaml or --config", partial(send_preset, stage))
        which = short.add_mutually_exclusive_group(required=True)
        which.add_argument("--model", "-m")
        which.add_argument("--config")
        add_sending(short)


def add_sending(parser: argparse.ArgumentParser) -> None:
    """What all that send a stage share."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the stage's file")
    parser.add_argument("--follow", "-f", action="store_true", help="show the output to its end")
    parser.add_argument("--dry-run", action="store_true", help="print the command exactly as it would be")
    add_place(parser)


def preset(stage: str, model: str) -> str:
    """The file of a model's stage; raises `ValueError` naming those that there are."""
    path = lifecycle.ROOT / "configs" / stage / f"{model}.yaml"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ValueError(f"there is no configs/{stage}/{model}.yaml; models with that stage: {there}")
    return str(path.relative_to(lifecycle.ROOT))


def send(arguments: Arguments, stage: str, config: str) -> None:
    """Submit a stage."""
    jobs.submit(stage, config, arguments.overrides, follow=arguments.follow, dry_run=arguments.dry_run, **place_of(arguments))


def send_preset(stage: str, arguments: Arguments) -> None:
    """Submit a stage with a file of one's own, or a model's."""
    send(arguments, stage, arguments.config or preset(stage, arguments.model))


if __name__ == "__main__":
    main()
