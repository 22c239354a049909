"""The chunked losses against autograd on logits formed at once, for every signal, and the memory that they promise not to take."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wfray.objectives.certainty import CertaintyTerm
from wfray.objectives.linear_losses import LinearLosses, linear_losses
from wfray.objectives.soft_targets import Shortlist, Teacher, TeacherHead
from wfray.quant.determinism import use_deterministic_algorithms
from wfray.teacher.sparse import sample, top_k
from wfray.train.feed import on_device

NUM_TOKENS, WIDTH, VOCABULARY = 90, 16, 211
NUM_IDS = 7
CHUNK = 37
"""Tokens: the last chunk is not whole."""
SIGNALS = ["hidden", "topk", "shortlist", "sampled"]
Case = dict[str, Tensor]


@pytest.fixture
def case() -> Case:
    """Every seventh token has no target."""
    return make_case(torch.float64)


def make_case(dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, VOCABULARY, (NUM_TOKENS,), generator=generator)
    targets[::7] = -100

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "hidden": normal(NUM_TOKENS, WIDTH).requires_grad_(),
        "head": normal(VOCABULARY, WIDTH).requires_grad_(),
        "targets": targets,
        "teacher_hidden": normal(NUM_TOKENS, WIDTH),
        "teacher_head": normal(VOCABULARY, WIDTH),
    }


def teacher_of(case: Case, signal: str, temperature: float) -> Teacher:
    if signal == "hidden":
        return TeacherHead(case["teacher_hidden"], case["teacher_head"], temperature)
    logits = case["teacher_hidden"] @ case["teacher_head"].t()
    if signal in ("topk", "shortlist"):
        found = top_k(logits, NUM_IDS, temperature)
        return Shortlist.of(found) if signal == "shortlist" else found
    return sample(logits, NUM_IDS, temperature, torch.rand(NUM_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def plain_kl(case: Case, teacher: Teacher) -> Tensor:
    """KL of each token, from the formulas, on whole logits."""
    scaled = case["hidden"] @ case["head"].t() / teacher.temperature
    if isinstance(teacher, Shortlist):
        log_p, log_q = teacher.log_probs.to(scaled.dtype), scaled.gather(-1, teacher.ids).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    log_q = scaled.log_softmax(-1)
    if isinstance(teacher, TeacherHead):
        p = (teacher.hidden_TC @ teacher.weight_VC.t() / teacher.temperature).softmax(-1)
        return (p * (p.log() - log_q)).sum(-1)
    listed = log_q.gather(-1, teacher.ids)
    if hasattr(teacher, "entropy"):
        return -(teacher.weights * listed).sum(-1) - teacher.entropy
    rest = (1.0 - listed.exp().sum(-1, keepdim=True)).log()
    log_p = teacher.log_probs.to(log_q.dtype)
    return (log_p.exp() * (log_p - torch.cat([listed, rest], -1))).sum(-1)


def plain(case: Case, ce_weight: float | None, kl_weight: float | None, teacher: Teacher | None, tau_squared: bool) -> Tensor:
    keep = case["targets"] != -100
    total = case["hidden"].new_zeros(())
    if ce_weight is not None:
        total = total + ce_weight * F.cross_entropy((case["hidden"] @ case["head"].t())[keep], case["targets"][keep])
    if kl_weight is not None:
        assert teacher is not None
        total = total + kl_weight * plain_kl(case, teacher)[keep].mean() * (teacher.temperature**2 if tau_squared else 1.0)
    return total


def num_targets(case: Case) -> int:
    return int((case["targets"] != -100).sum())


def exact_losses(case: Case, chunk: int, **terms: Any) -> LinearLosses:
    return linear_losses(case["hidden"], case["head"], case["targets"], num_targets(case), dtype=torch.float64, chunk_tokens=chunk, **terms)


COMBINATIONS = [(0.7, None, "hidden", 1.0, True)] + [
    (ce_weight, 1.3, signal, temperature, tau_squared)
    for ce_weight, signal, (temperature, tau_squared) in product(
        (None, 0.7), SIGNALS, ((1.0, True), (5.0, True), (5.0, False), (0.5, True))
    )
]


@pytest.mark.parametrize(("ce_weight", "kl_weight", "signal", "temperature", "tau_squared"), COMBINATIONS)
@pytest.mark.parametrize("chunk", [CHUNK, NUM_TOKENS])
def test_values_and_gradients_equal_autograd_on_whole_logits(
    case: Case, ce_weight: float | None, kl_weight: float | None, signal: str, temperature: float, tau_squared: bool, chunk: int
) -> None:
    teacher = teacher_of(case, signal, temperature)
    inputs = [case["hidden"], case["head"]]
    losses = exact_losses(case, chunk, ce_weight=ce_weight, kl_weight=kl_weight, teacher=teacher, tau_squared=tau_squared)
    wanted = plain(case, ce_weight, kl_weight, teacher, tau_squared)
    assert losses.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (ce_weight or 0) * losses.cross_entropy + (kl_weight or 0) * losses.logits_kl == pytest.approx(wanted.item(), rel=1e-9)
    for ours, reference in zip(torch.autograd.grad(3.0 * losses.total, inputs), torch.autograd.grad(3.0 * wanted, inputs), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-12)


def plain_entropy(case: Case, temperature: float) -> Tensor:
    """Of the tokens whose target is the student's likeliest token, over all tokens with a target."""
    logits, targets = case["hidden"] @ case["head"].t(), case["targets"]
    right = logits.argmax(-1) == targets
    assert 3 < right.sum() < num_targets(case) - 3
    q = (logits[right] / temperature).softmax(-1)
    return -(q * q.log()).sum() / num_targets(case)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("ce_weight", "kl_weight"), [(0.7, None), (0.7, 1.3), (None, None)])
def test_certainty_is_the_entropy_of_what_is_right_and_leaves_the_rest_alone(
    case: Case, temperature: float, ce_weight: float | None, kl_weight: float | None
) -> None:
    half = case["targets"].clone()
    half[::2] = (case["hidden"] @ case["head"].t()).argmax(-1)[::2]
    case["targets"] = torch.where(case["targets"] == -100, -100, half)
    teacher = teacher_of(case, "hidden", 1.0)
    inputs = [case["hidden"], case["head"]]
    term = CertaintyTerm(2.0, temperature)
    losses = exact_losses(case, CHUNK, ce_weight=ce_weight, kl_weight=kl_weight, teacher=teacher, certainty=term)
    entropy = plain_entropy(case, temperature)
    wanted = plain(case, ce_weight, kl_weight, teacher, True) + 2.0 * entropy
    assert losses.entropy == pytest.approx(entropy.item(), rel=1e-9)
    assert losses.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    for ours, reference in zip(torch.autograd.grad(losses.total, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
def test_lower_precision_stays_near_double_precision(signal: str, dtype: torch.dtype, rtol: float) -> None:
    exact, case = make_case(torch.float64), make_case(torch.float32)
    losses = linear_losses(
        case["hidden"],
        case["head"],
        case["targets"],
        num_targets(case),
        ce_weight=0.7,
        kl_weight=1.3,
        teacher=teacher_of(case, signal, 2.0),
        dtype=dtype,
        chunk_tokens=CHUNK,
    )
    wanted = plain(exact, 0.7, 1.3, teacher_of(exact, signal, 2.0), True)
    assert losses.total.item() == pytest.approx(wanted.item(), rel=rtol)
    ours = torch.autograd.grad(losses.total, [case["hidden"], case["head"]])
    for gradient, reference in zip(ours, torch.autograd.grad(wanted, [exact["hidden"], exact["head"]]), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() <= rtol * reference.norm()


@pytest.mark.parametrize("signal", SIGNALS)
def test_results_repeat_to_the_bit(signal: str) -> None:
    def once() -> list[Tensor]:
        case = make_case(torch.float32)
        teacher = teacher_of(case, signal, 2.0)
        inputs = [case["hidden"], case["head"]]
        total = linear_losses(*inputs, case["targets"], 70, ce_weight=1.0, kl_weight=1.0, teacher=teacher, dtype=torch.bfloat16).total
        return [total, *torch.autograd.grad(total, inputs)]

    assert all(torch.equal(first, second) for first, second in zip(once(), once(), strict=True))


@pytest.mark.parametrize("signal", SIGNALS)
def test_autocast_around_it_changes_nothing(signal: str) -> None:
    def once(enabled: bool) -> list[Tensor]:
        case = make_case(torch.float32)
        teacher = teacher_of(case, signal, 1.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            total = linear_losses(case["hidden"], case["head"], case["targets"], 70, ce_weight=1.0, kl_weight=1.0, teacher=teacher).total
        return [total, *torch.autograd.grad(total, [case["hidden"], case["head"]])]

    assert all(torch.equal(first, second) for first, second in zip(once(True), once(False), strict=True))


def test_a_batch_cut_in_two_gives_the_same_sum(case: Case) -> None:
    def total(part: slice) -> Tensor:
        teacher = TeacherHead(case["teacher_hidden"][part], case["teacher_head"], 2.0)
        inputs = case["hidden"][part], case["head"], case["targets"][part]
        return linear_losses(*inputs, num_targets(case), ce_weight=1.0, kl_weight=1.0, teacher=teacher, chunk_tokens=CHUNK).total

    torch.testing.assert_close(total(slice(0, 50)) + total(slice(50, None)), total(slice(None)))


def test_a_frozen_head_keeps_the_gradient_of_the_hidden_states(case: Case) -> None:
    def gradient(head: Tensor) -> Tensor:
        total = linear_losses(case["hidden"], head, case["targets"], 70, ce_weight=1.0, dtype=torch.float64).total
        return torch.autograd.grad(total, case["hidden"])[0]

    assert torch.equal(gradient(case["head"].detach()), gradient(case["head"]))


def test_frozen_hidden_states_keep_the_gradient_of_the_head(case: Case) -> None:
    def gradient(hidden: Tensor) -> Tensor:
        total = linear_losses(hidden, case["head"], case["targets"], 70, ce_weight=1.0, dtype=torch.float64).total
        return torch.autograd.grad(total, case["head"])[0]

    assert torch.equal(gradient(case["hidden"].detach()), gradient(case["hidden"]))


def test_a_tied_head_adds_both_of_its_gradients(case: Case) -> None:
    embedding = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
    ids, targets = case["targets"].roll(1).clamp(min=0), case["targets"]
    hidden = embedding(ids).tanh()
    total = linear_losses(
        hidden, embedding.weight, targets, num_targets(case), ce_weight=1.0, dtype=torch.float64, chunk_tokens=CHUNK
    ).total
    wanted = F.cross_entropy(embedding(ids).tanh() @ embedding.weight.t(), targets, ignore_index=-100)
    ours, reference = (torch.autograd.grad(loss, embedding.weight)[0] for loss in (total, wanted))
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-12)


def test_a_batch_without_targets_has_no_loss_and_no_gradient(case: Case) -> None:
    losses = linear_losses(case["hidden"], case["head"], torch.full((NUM_TOKENS,), -100), 5, ce_weight=1.0)
    gradients = torch.autograd.grad(losses.total, [case["hidden"], case["head"]])
    assert (losses.total.item(), losses.cross_entropy) == (0.0, 0.0)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("signal", SIGNALS)
def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(signal: str) -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    case = make_case(torch.float32)
    teacher = teacher_of(case, signal, 2.0)
    with Watch():
        losses = linear_losses(
            case["hidden"], case["head"], case["targets"], 70, ce_weight=1.0, kl_weight=1.0, teacher=teacher, chunk_tokens=20
        )
        losses.total.backward()
    assert VOCABULARY * WIDTH <= largest <= 20 * VOCABULARY < NUM_TOKENS * VOCABULARY / 4


def test_certain_predictions_are_exact() -> None:
    head = torch.eye(5, requires_grad=True)
    hidden = torch.full((2, 5), -100.0)
    hidden[0, 1] = hidden[1, 4] = 100.0
    hidden.requires_grad_()
    losses = linear_losses(hidden, head, torch.tensor([1, 4]), 2, ce_weight=1.0)
    assert losses.cross_entropy == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(losses.total, [hidden, head]))


def test_a_rest_that_no_float_holds_still_pulls() -> None:
    """The student gives the rest exp(-200); the gradient raises its largest part by the teacher's mass there."""
    hidden = torch.tensor([[0.0, -200.0, -201.0, -202.0]], requires_grad=True)
    teacher = top_k(torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log(), 1, 1.0)
    losses = linear_losses(hidden, torch.eye(4), torch.tensor([0]), 1, kl_weight=1.0, teacher=teacher)
    (gradient,) = torch.autograd.grad(losses.total, hidden)
    rest = torch.tensor([0.0, -1.0, -2.0]).softmax(0)
    torch.testing.assert_close(gradient, torch.cat([torch.tensor([0.5]), -0.5 * rest])[None])
    assert losses.logits_kl == pytest.approx(0.5 * (200 - rest.log()[0].neg().item()) - 0.6931, rel=1e-3)


def test_gradients_are_handed_over_once(case: Case) -> None:
    total = linear_losses(case["hidden"], case["head"], case["targets"], 1, ce_weight=1.0).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward a second time"):
        total.backward()


def test_a_kl_without_a_teacher_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="kl_weight needs a teacher"):
        linear_losses(case["hidden"], case["head"], case["targets"], 1, kl_weight=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_gpu_agrees_and_repeats_to_the_bit(signal: str) -> None:
    """With torch's deterministic algorithms, as stages are trained."""
    use_deterministic_algorithms()

    def once(device: str) -> list[Tensor]:
        case = make_case(torch.float64)
        teacher = on_device(teacher_of(case, signal, 2.0), torch.device(device))
        inputs = [case[name].detach().to(device).requires_grad_() for name in ("hidden", "head")]
        targets = case["targets"].to(device)
        total = linear_losses(*inputs, targets, 70, ce_weight=1.0, kl_weight=1.0, teacher=teacher, dtype=torch.float64).total
        return [total.cpu(), *(gradient.cpu() for gradient in torch.autograd.grad(total, inputs))]

    first, second, cpu = once("cuda"), once("cuda"), once("cpu")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for ours, reference in zip(first, cpu, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-9)
