"""What each wire costs on the object store, and what it does to the student's gradient, against full logits in one process.

Work: SmolLM2-135M as the teacher, rows of 512 tokens of the quickstart's text. Bytes are those of the reply in Ray's object store,
over its tokens. The gradient is that of KL(teacher || student) with respect to the student's logits, temperature 1; its relative error is
the norm of the difference from the gradient of full float32 logits that are made from the teacher's hidden states in this process,
over that one's norm, all tokens together. The students are the ternary one before training and one that is a tenth of the way there,
whose distribution is near the teacher's; the worse counts.

Peers at equal bytes, that is with the same ids, probabilities and encodings as `topk`: the k largest without the rest, as verl's
forward KL sums them over the student's full softmax; and both sides renormalised over the k.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from ray.experimental import get_object_locations
from torch import Tensor

from benchmarks.harness import report
from benchmarks.teachers import LENGTH, client, config, deployed, make_student, model, part, rows
from wfray.quant import set_lambda
from wfray.student import load_student, run_body
from wfray.student.forward import lm_head_weight
from wfray.teacher import SignalRequest, TransformersEngine, decode_signals
from wfray.teacher.signals import decode
from wfray.teacher.sparse import Sampled, TopK

GOAL = 1 / 80
EXACT = 1e-3
NUM_IDS = 50
VOCABULARY, LAYER = 49_152, 22
LAMBDAS = (0.1, 1.0)
Gradient = Callable[[Tensor], Tensor]
"""The student's distribution q [T, V] -> the gradient [T, V]."""


def from_logits(logits_TV: Tensor) -> Gradient:
    """Full logits."""
    p_TV = logits_TV.float().softmax(-1)
    return lambda q_TV: q_TV - p_TV


def from_top_k(signal: TopK) -> Gradient:
    """The k largest and the rest."""
    p_TK, rest_T1 = signal.log_probs[:, :-1].exp(), signal.log_probs[:, -1:].exp()

    def gradient(q_TV: Tensor) -> Tensor:
        q_rest_T1 = q_TV.scatter(1, signal.ids, 0.0).sum(-1, keepdim=True)
        outside_TV = q_TV * (1 - rest_T1 / q_rest_T1)
        return outside_TV.scatter(1, signal.ids, q_TV.gather(1, signal.ids) - p_TK)

    return gradient


def from_sample(signal: Sampled) -> Gradient:
    """Drawn ids and weights."""
    return lambda q_TV: (q_TV * signal.weights.sum(-1, keepdim=True)).scatter_add(1, signal.ids, -signal.weights)


def plain_top_k(signal: TopK) -> Gradient:
    """The k largest, the student's softmax over everything, no rest."""
    p_TK = signal.log_probs[:, :-1].exp()
    return lambda q_TV: (q_TV * p_TK.sum(-1, keepdim=True)).scatter_add(1, signal.ids, -p_TK)


def renormalised_top_k(signal: TopK) -> Gradient:
    """Both distributions over the k largest alone."""
    p_TK = signal.log_probs[:, :-1].softmax(-1)

    def gradient(q_TV: Tensor) -> Tensor:
        q_TK = q_TV.gather(1, signal.ids)
        return torch.zeros_like(q_TV).scatter(1, signal.ids, q_TK / q_TK.sum(-1, keepdim=True) - p_TK)

    return gradient


def sizes(batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Bytes a token of each wire in the object store."""
    found = {}
    for wire in ("hidden", "topk", "sampled", "layers", "qkv", "logits"):
        pending = client(SignalRequest(wires=[wire], num_ids=NUM_IDS, qkv_layer=LAYER)).request(batch)
        pending.call.wait()
        reference = pending.call.response._to_object_ref_sync()
        found[wire] = get_object_locations([reference])[reference]["object_size"] / batch["input_ids"].size
    return found


def errors(batch: dict[str, np.ndarray], dtype: str) -> dict[str, float]:
    """The relative error of the gradient of each wire, of a teacher in this dtype; the worse of both students."""
    engine = TransformersEngine(model(), dtype)  # type: ignore[arg-type]
    head_VC = lm_head_weight(engine.model).float()
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    wired = decode_signals(engine.signals(batch, SignalRequest(wires=["hidden", "topk", "sampled", "logits"], num_ids=NUM_IDS)))
    with torch.inference_mode():
        hidden_BTC = run_body(engine.model, tensors).hidden_BTC
        student = load_student(make_student(config().model))
        worst: dict[str, float] = {}
        for fraction in LAMBDAS:
            set_lambda(student, fraction)
            states_BTC = run_body(student, tensors).hidden_BTC
            squares: dict[str, float] = {}
            total = 0.0
            for row in range(len(batch["input_ids"])):
                q_TV = (states_BTC[row] @ lm_head_weight(student).t()).softmax(-1)
                exact_TV = from_logits(hidden_BTC[row].float() @ head_VC.t())(q_TV)
                total += exact_TV.square().sum().item()
                for name, gradient in gradients(wired, row, decode(engine.head()).float()).items():
                    squares[name] = squares.get(name, 0.0) + (gradient(q_TV) - exact_TV).square().sum().item()
            for name, square in squares.items():
                worst[name] = max(worst.get(name, 0.0), (square / total) ** 0.5)
    return worst


def gradients(wired: dict, row: int, head_VC: Tensor) -> dict[str, Gradient]:
    """The gradient of each wire and peer, on one row."""
    largest, drawn = wired["topk"], wired["sampled"]
    top = TopK(largest.ids[row], largest.log_probs[row], 1.0)
    return {
        "hidden": from_logits(wired["hidden"][row].float() @ head_VC.t()),
        "logits": from_logits(wired["logits"][row]),
        "topk": from_top_k(top),
        "sampled": from_sample(Sampled(drawn.ids[row], drawn.weights[row], drawn.entropy[row], 1.0)),
        "verl's top-k without the rest": plain_top_k(top),
        "top-k renormalised on both sides": renormalised_top_k(top),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4, help=f"rows of {LENGTH} tokens")
    batch = part(rows(parser.parse_args().rows), 0, parser.parse_args().rows)
    with deployed("wires=[hidden,layers,qkv,topk,sampled,logits]", "threads=1"):
        bytes_a_token = sizes(batch)
    by_dtype = {dtype: {name: round(error, 6) for name, error in errors(batch, dtype).items()} for dtype in ("bfloat16", "float32")}
    share, exact = bytes_a_token["hidden"] / (2 * VOCABULARY), by_dtype["bfloat16"]["hidden"]
    report(
        "teacher_wire",
        share if exact <= EXACT else float("inf"),
        f"bytes of `hidden` over those of full bfloat16 logits, its gradient exact within {EXACT}",
        goal=GOAL,
        peers={name: by_dtype["bfloat16"][name] for name in by_dtype["bfloat16"] if "top-k" in name},
        detail={
            "bytes_a_token": {name: round(size, 1) for name, size in bytes_a_token.items()},
            "relative_error_of_the_gradient": by_dtype,
            "num_ids": NUM_IDS,
            "tokens": batch["input_ids"].size,
        },
    )


if __name__ == "__main__":
    main()
