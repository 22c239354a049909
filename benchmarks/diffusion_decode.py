"""Decoding a block at a time against autoregressive decoding with a key-value cache: same weights, same engine, batch 1.

Work: calls of functions in held-out conversations by the demonstration's checkpoint (`python -m jobs.pipeline --config
configs/diffusion.yaml`), 2 threads, greedy; prompts are prefilled in either. Autoregressive decoding is the same decoder with blocks of one
token. Beside it: tokens a forward pass, and what the training changed in held-out loss: nats a response token of the autoregressive
model before (causal) and of the block-diffusion one after (its Monte Carlo bound; and causal, which it was not trained for).

Expected: one pass over a few tokens costs little more than over one, since both wait for the weights, so the ratio is about the tokens
a pass gives over 1.1 to 1.5. Peers: other thresholds, sub-blocks and the dual cache.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks import bodies
from benchmarks.harness import interleave, medians, report
from wfray.data.batch import CONTEXT
from wfray.data.corpus import PackedCorpus
from wfray.diffusion.answers import Counts, Decoding
from wfray.diffusion.decode import generate
from wfray.diffusion.likelihood import Scorer
from wfray.diffusion.student import Diffuser, load_diffuser, prepare_for_inference
from wfray.quant import hold_codes, set_lambda
from wfray.quant.precision import dtype_of
from wfray.student import hidden_states, lm_head_weight, load_student
from wfray.student.checkpoint import read_config

GOAL = 2.0
Example = tuple[list[int], list[int]]
"""A prompt and its response."""


def heldout_examples(corpus: PackedCorpus, most_tokens: int) -> list[Example]:
    """The held-out responses with what stands before them, in rows' order, source by source in turn."""
    by_source = []
    for source in corpus.source_names:
        rows = corpus.read_rows(source, "heldout", range(corpus.split(source, "heldout").num_rows))
        by_source.append([example for row in range(len(rows.input_ids)) for example in row_examples(rows, row, most_tokens)])
    turns = [[examples[turn] for examples in by_source if turn < len(examples)] for turn in range(max(map(len, by_source)))]
    return [example for turn in turns for example in turn]


def row_examples(rows: Any, row: int, most_tokens: int) -> list[Example]:
    """The first response of every document in a row."""
    found = []
    for segment in range(1, int(rows.segment_ids[row].max()) + 1):
        places = np.flatnonzero(rows.segment_ids[row] == segment)
        is_response = rows.marks[row][places] != CONTEXT
        if not is_response.any():
            continue
        start = int(is_response.argmax())
        stop = start + int((~is_response[start:]).argmax()) if not is_response[start:].all() else len(places)
        tokens = rows.input_ids[row][places].tolist()
        if start and stop <= most_tokens:
            found.append((tokens[:start], tokens[start:stop]))
    return found


def measure(
    diffuser: Diffuser, examples: list[Example], sides: dict[str, Decoding], rounds: int
) -> tuple[dict[str, float], dict[str, Counts]]:
    """Tokens per second of every side, and what it took."""
    counts: dict[str, Counts] = {}
    end, mask_id = diffuser.tokenizer.eos_token_id, diffuser.method.mask_token_id

    def answer(name: str) -> Callable[[], None]:
        def run() -> None:
            counts[name] = Counts()
            for prompt, _ in examples:
                _, took = generate(diffuser.model, mask_id, frozenset({end}), sides[name], [prompt])
                counts[name].tokens += took.tokens
                counts[name].runs += took.runs

        return run

    seconds = medians(interleave({name: answer(name) for name in sides}, rounds=rounds, warm_ups=1))
    return {name: counts[name].tokens / value for name, value in seconds.items()}, counts


@torch.inference_mode()
def causal_loss(model: PreTrainedModel, examples: list[Example]) -> float:
    """Nats a response token, autoregressively."""
    total, num_tokens = 0.0, 0
    for prompt, response in examples:
        ids = torch.tensor([prompt + response])
        batch = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None], "segment_ids": torch.ones_like(ids)}
        hidden_TC = hidden_states(model, batch)[0, len(prompt) - 1 : -1]
        log_p = (hidden_TC @ lm_head_weight(model).T).float().log_softmax(dim=-1)
        total -= float(log_p.gather(1, torch.tensor(response)[:, None]).sum())
        num_tokens += len(response)
    return total / num_tokens


def heldout_losses(before: Path, after: Path, examples: list[Example], num_samples: int) -> dict[str, float]:
    """Nats a response token before and after the training; see the module docstring."""
    losses = {}
    strength = read_config(after).wrinklefree["quantization_lambda"]
    for name, directory in {"before, causal": before, "after, causal": after}.items():
        model = load_student(directory)
        # A converted student says ternary until a stage has trained it; here both are what they are trained as.
        set_lambda(model, strength)
        hold_codes(model)
        losses[name] = causal_loss(model, examples)
    diffuser = load_diffuser(after)
    hold_codes(diffuser.model)
    method = diffuser.method
    scorer = Scorer(diffuser.model, method.mask_token_id, method.block_size, num_samples, precision=dtype_of("auto"))
    scores = [scorer.score(prompt, response) for prompt, response in examples]
    num_tokens = sum(len(response) for _, response in examples)
    losses["after, block diffusion"] = -sum(score.nats for score in scores) / num_tokens
    losses["standard error"] = sum(score.standard_error**2 for score in scores) ** 0.5 / num_tokens
    losses["change"] = losses["after, block diffusion"] - losses["before, causal"]
    return {name: round(value, 4) for name, value in losses.items()}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/diffusion"), help="where the demonstration has run")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--samples", type=int, default=16, help="of the Monte Carlo likelihood")
    args = parser.parse_args()
    torch.set_num_threads(bodies.THREADS)
    after = args.run / "diffuse" / "student"
    diffuser = load_diffuser(after)
    prepare_for_inference(diffuser.model, dtype_of("auto"))
    examples = heldout_examples(PackedCorpus(args.run / "pack" / "corpus"), most_tokens=480)
    method, chosen = diffuser.method, examples[: args.prompts]
    base = Decoding(method.block_size, method.sub_block_size, args.threshold, args.tokens)
    sides = {
        "autoregressive": replace(base, block_size=1, sub_block_size=1),
        "blocks": replace(base, dual_cache=True),
        "whole blocks": base,
        "one sub-block": replace(base, sub_block_size=method.block_size),
        "threshold 1": replace(base, threshold=1.0, dual_cache=True),
    }
    started = time.perf_counter()
    speeds, counts = measure(diffuser, chosen, sides, args.rounds)
    ratios = {name: speed / speeds["autoregressive"] for name, speed in speeds.items()}
    detail = {
        "threshold": args.threshold,
        "answers": len(chosen),
        "tokens per second": {name: round(speed, 2) for name, speed in speeds.items()},
        "tokens": {name: count.tokens for name, count in counts.items()},
        "tokens per forward pass": {name: round(count.tokens / max(count.runs, 1), 3) for name, count in counts.items()},
        "heldout loss, nats a token": heldout_losses(args.run / "convert" / "student", after, examples[: 4 * args.prompts], args.samples),
        "seconds": round(time.perf_counter() - started, 1),
    }
    peers = {name: round(ratio, 3) for name, ratio in ratios.items() if name not in ("blocks", "autoregressive")}
    report("diffusion_decode", ratios["blocks"], "x of autoregressive decoding", goal=GOAL, better="higher", peers=peers, detail=detail)


if __name__ == "__main__":
    main()
