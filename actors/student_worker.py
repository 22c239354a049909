"""One worker of the student's training: everything set up, the newest checkpoint loaded, the loop run, the student saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from actors.student_metrics import with_metrics
from actors.teacher_client import TeacherClient
from wfray.config.diffuse import DiffuseConfig
from wfray.config.objectives import AttentionRelations
from wfray.config.teacher import RECORD
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.diffusion.student import DiffusionStudent
from wfray.objectives import StageLoss, num_related
from wfray.objectives.relations import check_split
from wfray.quant import lambda_at
from wfray.quant.determinism import use_deterministic_algorithms
from wfray.quant.precision import dtype_of
from wfray.runs import read_metrics
from wfray.runs.files import write_aside, write_json
from wfray.student.compiled import compile_layers
from wfray.student.kind import CausalStudent, StudentKind
from wfray.student.original import architecture_of
from wfray.teacher import Fingerprint, SignalRequest
from wfray.teacher.fingerprint import recorded_teacher
from wfray.train import CheckpointStore, Collective, Feed, Replica, StepPlan, Trainer
from wfray.train.influence import StudentProbe, make_mixer
from wfray.train.optimizer import freeze, make_optimizer
from wfray.train.state import TrainingState
from wfray.train.tracking import open_log


def run_worker(
    config: TrainConfig, directory: Path, student: Path, corpus: Path, announced_losses: Callable[[], int] | None = None
) -> None:
    """Set everything up, resume where the newest checkpoint stands, train, and save the student.

    Args:
        config: the stage.
        directory: the stage's directory, shared by all workers.
        student: the student directory to go on from.
        corpus: the packed corpus directory.
        announced_losses: counts the machines that will be taken back; see `Trainer`.
    """
    if (directory / "student").exists():
        # An earlier attempt trained and saved it, whole; what comes after is not the workers'.
        return
    set_determinism(config)
    collective = Collective()
    packed = PackedCorpus(corpus)
    kind: StudentKind = DiffusionStudent(config) if isinstance(config, DiffuseConfig) else CausalStudent()
    model = kind.load(student)
    packed.require_tokenizer(kind.tokenizer_sha256)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    freeze(model, config.train.learned)
    if config.train.compile:
        compile_layers(model)
    checkpoints = CheckpointStore(directory / "checkpoints", collective)
    newest = checkpoints.newest()
    teacher = connect_teacher(config, packed, model.config, kind.vocab_size)
    if teacher is not None:
        require_same_teacher(teacher.fingerprint, directory, is_resumed=newest is not None, is_first=collective.rank == 0)
    head_VC = teacher.head() if teacher and "hidden" in teacher.wanted.wires else None
    precision = dtype_of(config.train.precision)
    loss = StageLoss(config.objectives, head_VC, precision)
    replica = Replica(model, precision, collective)
    optimizer = make_optimizer(model, config.train)
    progress = checkpoints.load(newest, model, optimizer) if newest else None
    done = progress.step if progress else 0
    cursor = progress.cursor if progress else None
    stream = MixedStream(packed, "train", weights=None if cursor else config.first_weights, seed=config.train.seed, cursor=cursor)
    probe = StudentProbe(replica, config.train.micro_rows, collective)
    plan, mixer = step_plan(config, packed.index.sequence_length, done), make_mixer(config, probe, packed)
    count = None if loss.qkv_layer is None else lambda batch: num_related(kind.related(batch))
    feed = Feed(stream, plan, teacher, collective.rank, collective.world_size, mixer, count)
    state = progress.state if progress else TrainingState()
    with open_log(config, directory, collective.rank, done) as log:
        show = with_metrics(log, Path(config.run).name, config.stage) if collective.rank == 0 else log
        Trainer(config, replica, optimizer, loss, checkpoints, collective, show, state, kind.forward, announced_losses).run(feed)
    replica.gather()
    if collective.rank == 0:
        # Fewer than the budget where training was ended early.
        tokens = read_metrics(directory / "metrics.jsonl")[-1]["tokens"]
        model.config.wrinklefree["quantization_lambda"] = lambda_at(config.quantization, tokens)
        with write_aside(directory / "student") as aside:
            kind.save(model, aside, student, tokens)
    collective.barrier()


def set_determinism(config: TrainConfig) -> None:
    """Equal seeds, thread counts and algorithms give equal losses."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    use_deterministic_algorithms()
    torch.manual_seed(config.train.seed)


def step_plan(config: TrainConfig, sequence_length: int, first_step: int) -> StepPlan:
    """How the rows of a step are cut and asked for."""
    in_flight = config.teacher.in_flight if config.teacher else 1
    return StepPlan(config.rows_of_step(sequence_length), config.train.micro_rows, config.num_steps, first_step, in_flight)


def connect_teacher(config: TrainConfig, corpus: PackedCorpus, student: Any, vocab_size: int) -> TeacherClient | None:
    """The teacher's client, after every check that can be made before the first step."""
    if config.teacher is None:
        return None
    relations = next((objective for objective in config.objectives if isinstance(objective, AttentionRelations)), None)
    request = SignalRequest.of(config.objectives, config.train.seed, vocab_size)
    client = TeacherClient(config.teacher, request, name=f"{Path(config.run).name}/{config.stage}")
    check_teacher(client.fingerprint, config, corpus, student)
    if relations:
        shape = architecture_of(student)
        check_split([shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim], relations.split_heads)
    return client


def require_same_teacher(teacher: Fingerprint, directory: Path, is_resumed: bool, is_first: bool) -> None:
    """Remember the teacher of a stage; raises `ValueError` where one that is gone on with had another."""
    if is_resumed and (known := recorded_teacher(directory)):
        if known.digest != teacher.digest:
            raise ValueError(
                f"the stage began with another teacher ({known.differences(teacher)}): deploy that one again, or delete {str(directory)!r} "
                "to begin anew"
            )
    elif is_first:
        write_json(directory / RECORD, teacher.model_dump())


def check_teacher(teacher: Fingerprint, config: TrainConfig, corpus: PackedCorpus, student: Any) -> None:
    """Raise `ValueError` when the teacher cannot teach this student on this corpus."""
    corpus.require_tokenizer(teacher.tokenizer_sha256)
    for objective in config.objectives:
        if isinstance(objective, AttentionRelations) and objective.layer >= min(teacher.num_layers, student.num_hidden_layers):
            raise ValueError(
                f"attention_relations.layer {objective.layer} does not exist: "
                f"the models have {teacher.num_layers} and {student.num_hidden_layers} layers"
            )
