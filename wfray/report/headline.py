"""The few numbers that matter, and what is wrong or missing in a run."""

from dataclasses import dataclass
from typing import Any

from wfray.report import numbers
from wfray.report.facts import RunFacts

NEEDED = {
    "pack": "No corpus was packed in this run.",
    "convert": "No model was converted in this run.",
    "train": "No training stage has finished in this run.",
    "evaluate": "No evaluation has finished, so there are no perplexities: run jobs.evaluate.",
    "export": "Nothing was exported yet, so there are no sizes, speeds or parity: run jobs.export.",
    "serve": "The model was not served in this run, so there are no chat answers: run jobs.serve.",
}


@dataclass(frozen=True)
class Tile:
    """One number with its name, and what to compare it with."""

    name: str
    value: str
    unit: str
    detail: str


def tiles(facts: RunFacts) -> list[Tile]:
    """The numbers at the top of the page, as many as the run has."""
    found = [quality_tile(facts), size_tile(facts), speed_tile(facts), parity_tile(facts), cost_tile(facts)]
    return [tile for tile in found if tile]


def quality_tile(facts: RunFacts) -> Tile | None:
    """Perplexity of the last student against the first and the original."""
    students = [subject for subject in facts.scores.subjects if subject.kind == "student"] if facts.scores else []
    if facts.scores is None or not students:
        return None
    before = f"{numbers.perplexity(students[0].overall.perplexity)} when {students[0].name}" if len(students) > 1 else ""
    originals = [f"{s.name} {numbers.perplexity(s.overall.perplexity)}" for s in facts.scores.subjects if s.kind == "original"]
    detail = "; ".join(part for part in [before, *originals] if part)
    return Tile("Held-out perplexity", numbers.perplexity(students[-1].overall.perplexity), "", detail)


def size_tile(facts: RunFacts) -> Tile | None:
    """Bytes of the exported file against the F16 original."""
    stage = facts.last("export")
    if stage is None:
        return None
    model, original = stage.figures["model"], stage.figures.get("original")
    value, unit = numbers.num_bytes(model["num_bytes"]).split(" ")
    detail = f"linear layers {8 * model['bytes_per_linear_weight']:.2f} bits a weight ({stored_as(model)})"
    if original:
        smaller = numbers.times(original["num_bytes"] / model["num_bytes"])
        detail = f"{smaller} smaller than {numbers.num_bytes(original['num_bytes'])} as F16; {detail}"
    return Tile("Exported file", value, unit, detail)


def stored_as(file: dict[str, Any]) -> str:
    """How an exported file stores its linear layers."""
    return str(file.get("linear_type") or file.get("layout") and f"I2_S, {file['layout']}" or f"Hugging Face, {file['form']}")


def speed_tile(facts: RunFacts) -> Tile | None:
    """Decoding speed of the exported file against the F16 original."""
    stage = facts.last("export")
    if stage is None or "speed" not in stage.figures["model"]:
        return None
    speed, original = stage.figures["model"]["speed"]["decode"], stage.figures.get("original")
    detail = "in llama.cpp"
    if original:
        base = original["speed"]["decode"]
        detail = f"{numbers.times(speed / base)} the original's {numbers.significant(base)} as F16, in llama.cpp"
    return Tile("Decoding", numbers.significant(speed), "tokens/s", detail)


def parity_tile(facts: RunFacts) -> Tile | None:
    """How often the exported file ranks the same token first as the training model."""
    stage = facts.last("export")
    if stage is None:
        return None
    parity = stage.figures["model"]["parity"]
    tokens, kl = numbers.integer(parity["num_tokens"]), numbers.significant(parity["mean_kl"], 2)
    detail = f"as the training model, on {tokens} held-out tokens; mean KL {kl} nats"
    return Tile("Same top token", numbers.percent(parity["top1_agreement"]).removesuffix("%"), "%", detail)


def cost_tile(facts: RunFacts) -> Tile | None:
    """Wall time and memory of the pipeline, else the sum of its stages' times."""
    if facts.cost is None:
        seconds = sum(stage.manifest.wall_seconds for stage in facts.stages)
        return Tile("Time", numbers.duration(seconds), "", f"in {len(facts.stages)} stages; the pipeline's own cost was not recorded")
    cost = facts.cost
    budget = f"meant to stay below {cost['max_memory_gb']:g} GiB and {cost['max_minutes']:g} min"
    of_all = "" if cost["all_stages"] else "; a resumed run, not all stages"
    detail = f"peak memory {numbers.memory(cost['peak_memory_bytes'])}, {budget}{of_all}"
    return Tile("The whole run", numbers.duration(cost["wall_seconds"]), "", detail)


def gaps(facts: RunFacts) -> list[str]:
    """What the run does not have, in sentences that say how to get it."""
    return [sentence for kind, sentence in NEEDED.items() if not facts.complete(kind)]  # type: ignore[arg-type]
