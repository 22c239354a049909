"""What a size costs: nodes, teachers, network, storage, days and dollars, from bytes and operations.

`python -m cluster.scale` prints the tables of docs/scale.md.

A token costs a student 6 operations a weight and a teacher 2 (forward alone); attention over rows of `SEQUENCE` tokens is added. A
ternary step costs what the unconverted model's does (`qat_step`: 1.00, both compiled). What is assumed and not measured: the share of the
peak that each reaches, and the network between nodes.
"""

import math
from dataclasses import dataclass

from cluster.prices import price_table

PEAK = 989e12
"""Operations a second of an H100, bfloat16, dense."""
STUDENT_SHARE, TEACHER_SHARE = 0.35, 0.45
TERNARY_STEP = 1.0
SEQUENCE = 2048
NODE_BYTES_PER_SECOND = 12.5e9
"""100 Gbit/s: a node's Ethernet, over which Ray sends."""
GPUS_PER_NODE = 8
STUDENT_BYTES, TEACHER_BYTES = 16, 2
"""A weight: master, gradient and two moments in float32; bfloat16."""
CHECKPOINT_BYTES, CORPUS_BYTES = 12, 6
"""A weight; a token of packed shards."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its cost."""

    name: str
    weights: float
    layers: int
    hidden: int
    vocabulary: int
    queries: int
    """Heads x head dimension."""
    keys: int

    @property
    def student_operations(self) -> float:
        """A token."""
        return 3 * self.teacher_operations * TERNARY_STEP

    @property
    def teacher_operations(self) -> float:
        """A token: two a weight, and the two products of attention, of which causality leaves half."""
        return 2 * self.weights + 2 * self.layers * self.queries * SEQUENCE

    @property
    def wires(self) -> dict[str, float]:
        """Bytes a token of each of the teacher's signals."""
        ids = 4 if self.vocabulary <= 65_536 else 6
        return {
            "sampled 16": 16 * ids,
            "topk 64": 64 * ids,
            "hidden": 2 * self.hidden,
            "qkv": 2 * (self.queries + 2 * self.keys),
            "layers": 2 * self.hidden * self.layers,
            "logits": 2 * self.vocabulary,
        }


SMOL = Shape("SmolLM2-135M", 134.5e6, 30, 576, 49_152, 576, 192)
QWEN = Shape("Qwen3-4B", 4.02e9, 36, 2560, 151_936, 4096, 1024)
LARGE = Shape("Llama-3.1-70B", 70.6e9, 80, 8192, 128_256, 8192, 1024)


@dataclass(frozen=True)
class Case:
    """A model, a number of tokens, and the GPUs of its student."""

    shape: Shape
    tokens: float
    student_gpus: int

    @property
    def rate(self) -> float:
        """Tokens a second of all students' GPUs."""
        return self.student_gpus * PEAK * STUDENT_SHARE / self.shape.student_operations

    @property
    def days(self) -> float:
        """Of training, nothing going wrong."""
        return self.tokens / self.rate / 86_400

    @property
    def teacher_gpus(self) -> int:
        """As many as keep up with the student, in whole replicas."""
        wanted = self.rate * self.shape.teacher_operations / (PEAK * TEACHER_SHARE)
        each = math.ceil(self.shape.weights * TEACHER_BYTES / 70e9)
        return math.ceil(wanted / each) * each

    @property
    def gigabytes_per_gpu(self) -> float:
        """Weights, gradients and moments of the student, sharded."""
        return self.shape.weights * STUDENT_BYTES / self.student_gpus / 1e9

    def network(self, wire: str) -> float:
        """Bytes a second from the teachers to the students."""
        return self.rate * self.shape.wires[wire]

    @property
    def storage_gigabytes(self) -> float:
        """Corpus, two checkpoints, student and original."""
        return (self.tokens * CORPUS_BYTES + self.shape.weights * (2 * CHECKPOINT_BYTES + 4 + 2)) / 1e9

    def dollars(self, spot: bool, with_teacher: bool) -> float:
        """On Nebius's H100s, at the price table's figures."""
        row = next(row for row in price_table().gpus if (row.provider, row.gpu) == ("nebius", "H100"))
        hourly = row.spot if spot and row.spot else row.on_demand
        return (self.student_gpus + (self.teacher_gpus if with_teacher else 0)) * hourly * self.days * 24


CASES = [Case(SMOL, 10e9, 1), Case(QWEN, 10e9, 8), Case(LARGE, 10e9, 64), Case(SMOL, 1e12, 16), Case(QWEN, 1e12, 128)]


def of_tokens(number: float) -> str:
    """10B or 1T."""
    return f"{number / 1e12:.0f}T" if number >= 1e12 else f"{number / 1e9:.0f}B"


def of_bytes(number: float, unit: str = "B") -> str:
    """With the unit that fits."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.0f} {unit}"


def sizes_table() -> str:
    """Nodes, time and money of every case."""
    columns = ["model, tokens", "student GPUs (nodes)", "GB a GPU", "tokens/s", "teacher GPUs", "days", "storage"]
    columns += ["$ alone, spot", "$ with teacher, spot", "on demand"]
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for case in CASES:
        nodes = math.ceil(case.student_gpus / GPUS_PER_NODE)
        cells = [
            f"{case.shape.name}, {of_tokens(case.tokens)}",
            f"{case.student_gpus} ({nodes})",
            f"{case.gigabytes_per_gpu:.1f}",
            f"{case.rate:,.0f}",
            str(case.teacher_gpus),
            f"{case.days:.1f}",
            of_bytes(case.storage_gigabytes * 1e9),
            f"{case.dollars(True, False):,.0f}",
            f"{case.dollars(True, True):,.0f}",
            f"{case.dollars(False, True):,.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def network_table() -> str:
    """Bytes a second of every wire, and over how many nodes' networks they fit."""
    wires = list(SMOL.wires)
    rows = ["| model, tokens | " + " | ".join(wires) + " |", "|" + "---|" * (len(wires) + 1)]
    for case in CASES:
        nodes = math.ceil(case.student_gpus / GPUS_PER_NODE)
        cells = []
        for wire in wires:
            share = case.network(wire) / nodes / NODE_BYTES_PER_SECOND
            cells.append(f"{of_bytes(case.network(wire), 'B/s')}{' **×' + format(share, '.3g') + '**' if share > 1 else ''}")
        rows.append(f"| {case.shape.name}, {of_tokens(case.tokens)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(f"{sizes_table()}\n\n{network_table()}")
