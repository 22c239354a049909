"""Decoding against a slow decoder without a cache, and autoregressive decoding against transformers' own."""

from dataclasses import dataclass, field

import pytest
import torch
from transformers import PreTrainedModel

from tests.wfray.diffusion.conftest import BLOCK, MASK_ID, diffusion_model
from wfray.diffusion.acceptance import Sampling, accepted, choose, nucleus
from wfray.diffusion.answers import Counts, Decoding
from wfray.diffusion.decode import BlockDecoder, generate

PROMPTS = [[5, 9, 2], [7] * 8, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9], [11]]
"""In the middle of a block, of whole blocks, of more than three, of one token."""


@torch.no_grad()
def slow_answer(
    model: PreTrainedModel, prompt: list[int], decoding: Decoding, stop_ids: frozenset[int], one_at_a_time: bool = False
) -> list[int]:
    """One answer by running the whole sequence anew for every token or set of tokens, with a dense mask and transformers' attention."""
    size, tokens = decoding.block_size, list(prompt)
    limit = len(prompt) + decoding.max_tokens

    def probabilities(sequence: list[int]) -> torch.Tensor:
        places = torch.arange(len(sequence)) // size
        bias = torch.zeros(len(sequence), len(sequence), dtype=torch.float64)
        bias.masked_fill_(places[None] > places[:, None], torch.finfo(torch.float64).min)
        logits = model(input_ids=torch.tensor([sequence]), attention_mask=bias[None, None], use_cache=False).logits[0].float()
        logits[:, MASK_ID] = -torch.inf
        return logits.softmax(dim=-1)

    while len(tokens) < limit:
        if len(tokens) % size == 0:
            tokens.append(int(probabilities(tokens)[-1].argmax()))
            if tokens[-1] in stop_ids:
                return tokens[len(prompt) : -1]
            continue
        start = len(tokens) // size * size
        block = tokens + [MASK_ID] * (start + size - len(tokens))
        for sub_block in range(start, start + size, decoding.sub_block_size):
            while True:
                known = [p for p in range(max(start, len(prompt)), min(start + size, limit)) if block[p] in stop_ids]
                end = min([*known, limit])
                masked = [p for p in range(sub_block, min(sub_block + decoding.sub_block_size, end)) if block[p] == MASK_ID]
                if not masked:
                    break
                found = probabilities(block)
                confidence = {p: float(found[p - 1].max()) for p in masked}
                best = max(masked, key=lambda p: confidence[p])
                for p in masked:
                    if p == best or (not one_at_a_time and confidence[p] > decoding.threshold):
                        block[p] = int(found[p - 1].argmax())
        tokens = block[: min(start + size, limit)]
        for p in range(len(prompt), len(tokens)):
            if tokens[p] in stop_ids:
                return tokens[len(prompt) : p]
    return tokens[len(prompt) :]


def decoder(model: PreTrainedModel, stop_ids: frozenset[int] = frozenset(), **settings: object) -> "Decoder":
    decoding = Decoding(**{"block_size": BLOCK, "sub_block_size": BLOCK, "max_tokens": 21, **settings})  # type: ignore[arg-type]
    return Decoder(model, stop_ids, decoding)


@dataclass
class Decoder:
    """Decodes set after set of prompts and adds up what they took."""

    model: PreTrainedModel
    stop_ids: frozenset[int]
    decoding: Decoding
    counts: Counts = field(default_factory=Counts)

    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        answers, counts = generate(self.model, MASK_ID, self.stop_ids, self.decoding, prompts)
        for name in ("tokens", "runs", "windows"):
            setattr(self.counts, name, getattr(self.counts, name) + getattr(counts, name))
        return answers


@pytest.mark.parametrize("sub_block_size", [2, 4])
@pytest.mark.parametrize("threshold", [0.03, 0.1, 1.0])
def test_answers_are_those_of_the_slow_decoder_without_a_cache(threshold: float, sub_block_size: int) -> None:
    model, plain = diffusion_model(ternary=False).double(), diffusion_model(ternary=False, attention="sdpa").double()
    ours = decoder(model, threshold=threshold, sub_block_size=sub_block_size)
    for prompt in PROMPTS:
        assert ours.generate([prompt]) == [slow_answer(plain, prompt, ours.decoding, frozenset())], prompt
    # The prompt of whole blocks has its first token from the prompt's own run.
    assert (ours.counts.runs < ours.counts.tokens - 1) == (threshold < 1.0)


@pytest.mark.parametrize("dual_cache", [False, True])
def test_threshold_one_gives_one_token_a_run(dual_cache: bool) -> None:
    model, plain = diffusion_model(ternary=False).double(), diffusion_model(ternary=False, attention="sdpa").double()
    ours = decoder(model, threshold=1.0, sub_block_size=2, dual_cache=dual_cache)
    answers = ours.generate(PROMPTS)
    assert all(len(answer) == 21 for answer in answers)
    # A block's first token comes with the run that finishes the block before it.
    num_first = sum(1 for prompt in PROMPTS for position in range(len(prompt), len(prompt) + 21) if position % BLOCK == 0)
    prefilled = sum(len(prompt) % BLOCK == 0 for prompt in PROMPTS)
    assert ours.counts.runs == ours.counts.tokens - prefilled
    assert num_first > prefilled
    if not dual_cache:
        slow = [slow_answer(plain, prompt, ours.decoding, frozenset(), one_at_a_time=True) for prompt in PROMPTS]
        assert answers == slow


@pytest.mark.parametrize("threshold", [0.05, 1.0])
@pytest.mark.parametrize("ternary", [False, True])
def test_rows_of_unequal_length_have_the_answers_that_they_have_alone(ternary: bool, threshold: float) -> None:
    model = diffusion_model(ternary=ternary)
    model = model if ternary else model.double()
    alone = [decoder(model, threshold=threshold, sub_block_size=2).generate([prompt])[0] for prompt in PROMPTS]
    assert decoder(model, threshold=threshold, sub_block_size=2).generate(PROMPTS) == alone


@pytest.mark.parametrize(("stop_in_block", "threshold"), [(0, 0.05), (1, 1.0), (2, 0.05), (3, 1.0)])
def test_a_stop_token_anywhere_in_a_block_ends_the_answer_before_it(stop_in_block: int, threshold: float) -> None:
    model, plain = diffusion_model(ternary=False).double(), diffusion_model(ternary=False, attention="sdpa").double()
    seen = set()
    for prompt in PROMPTS:
        whole = decoder(model, threshold=threshold).generate([prompt])[0]
        place = next(p for p in range(4, 21) if (len(prompt) + p) % BLOCK == stop_in_block)
        stop_ids = frozenset({whole[place]})
        ours = decoder(model, stop_ids, threshold=threshold)
        given = list(BlockDecoder(model, MASK_ID, stop_ids, ours.decoding, 1, len(prompt) + 21).stream([prompt]))
        answer = [token for part in given for token in part.tokens]
        assert answer == slow_answer(plain, prompt, ours.decoding, stop_ids)
        assert given[-1].finished and not any(part.finished for part in given[:-1])
        seen.add(given[-1].stopped)
    assert True in seen


def test_blocks_of_one_token_are_autoregressive_decoding() -> None:
    model = diffusion_model(ternary=False).double()
    plain = diffusion_model(ternary=False, attention="sdpa").double()
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(12):
            logits = plain(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            logits[MASK_ID] = -torch.inf
            tokens.append(int(logits.argmax()))
        ours = decoder(model, block_size=1, sub_block_size=1, max_tokens=12)
        assert ours.generate([prompt]) == [tokens[len(prompt) :]]
        assert ours.counts.runs == 11


def test_the_dual_cache_runs_parts_of_blocks_and_is_exact_with_one_sub_block_run() -> None:
    model = diffusion_model(ternary=False).double()
    exact = decoder(model, threshold=0.0, sub_block_size=2)
    dual = decoder(model, threshold=0.0, sub_block_size=2, dual_cache=True)
    assert dual.generate(PROMPTS) == exact.generate(PROMPTS), "each sub-block is run once, whole"
    slower = decoder(model, threshold=1.0, sub_block_size=2, dual_cache=True)
    slower.generate(PROMPTS)
    assert 0 < slower.counts.windows < slower.counts.runs and dual.counts.windows == 0


@pytest.mark.parametrize("sub_block_size", [2, BLOCK])
def test_an_answer_is_run_once_a_step_also_when_a_part_of_its_block_is_finished(sub_block_size: int) -> None:
    ours = decoder(diffusion_model(ternary=False).double(), threshold=1.0, sub_block_size=sub_block_size, dual_cache=True, max_tokens=BLOCK)
    [answer] = ours.generate([[*range(1, 2 * BLOCK + 1)]])
    num_first_runs = BLOCK // sub_block_size
    assert len(answer) == BLOCK and ours.counts.runs == BLOCK - 1
    assert ours.counts.windows == BLOCK - 1 - num_first_runs


def test_long_prompts_are_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = diffusion_model(ternary=False).double()
    prompts = [[*range(1, 30)], [*range(1, 17)], [5]]
    wanted = decoder(model).generate(prompts)
    monkeypatch.setattr("wfray.diffusion.decode.PREFILL_TOKENS", 8)
    assert decoder(model).generate(prompts) == wanted


def test_sampling_repeats_with_its_seed_and_follows_the_distribution() -> None:
    model = diffusion_model(ternary=False)
    settings = {"sampling": Sampling(temperature=1.0, top_p=0.9, seed=3)}
    first, second = (decoder(model, **settings).generate(PROMPTS) for _ in range(2))
    other = decoder(model, sampling=Sampling(temperature=1.0, seed=4)).generate(PROMPTS)
    assert first == second != other
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20000, 4)
    token, confidence = choose(logits, Sampling(temperature=2.0, seed=0), Sampling(seed=0).generator())
    shares = torch.bincount(token, minlength=4) / len(token)
    assert torch.allclose(shares, (logits[0] / 2).softmax(dim=-1), atol=0.02)
    assert torch.allclose(confidence, logits[0].softmax(dim=-1)[token])


@pytest.mark.parametrize("temperature", [1e-46, 1e-38, 1e-7, 1e-5])
def test_a_temperature_near_nothing_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[10.0, -30.0, 20.0], [3.0, 2.0, -1.0]])
    token, _ = choose(logits, Sampling(temperature, seed=0), Sampling(seed=0).generator())
    assert token.tolist() == [2, 0]


def test_a_sampled_answer_does_not_depend_on_the_others() -> None:
    model = diffusion_model(ternary=False).double()
    settings = {"sampling": Sampling(temperature=1.0, seed=3), "threshold": 0.05}
    alone = [decoder(model, **settings).generate([prompt])[0] for prompt in PROMPTS]
    assert decoder(model, **settings).generate(PROMPTS) == alone


def test_the_nucleus_and_acceptance() -> None:
    kept = nucleus(torch.tensor([[0.1, 0.5, 0.4]]), 0.6)
    assert kept.tolist() == [[0.0, 0.5, pytest.approx(0.4)]]
    assert accepted(torch.tensor([0.95, 0.2, 0.91]), 0.9).tolist() == [0, 2]
    assert accepted(torch.tensor([0.1, 0.3, 0.2]), 0.9).tolist() == [1]
    assert accepted(torch.tensor([1.0, 1.0]), 1.0).tolist() == [0]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[]], "a prompt is empty"), ([[3], []], "a prompt is empty"), ([[3, MASK_ID]], "a prompt holds the mask token 99")],
)
def test_prompts_that_cannot_be_answered_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(diffusion_model()).generate(prompts)


def test_answers_that_come_and_go_are_those_that_they_are_alone() -> None:
    model = diffusion_model(ternary=False).double()
    alone = decoder(model, threshold=0.05, max_tokens=9).generate
    decoding = Decoding(BLOCK, BLOCK, threshold=0.05, max_tokens=9)
    ours = BlockDecoder(model, MASK_ID, frozenset(), decoding, num_rows=3, context=32)
    found: dict[int, list[int]] = {index: [] for index in range(len(PROMPTS))}
    waiting, holders = list(range(len(PROMPTS))), {}
    while waiting or ours.answers:
        free = [row for row in (2, 0, 1) if row not in ours.answers]
        given = []
        if waiting and free:
            index, row = waiting.pop(), free[0]
            holders[row] = index
            ours.add(row, PROMPTS[index])
            given += ours.prefill([row])
        given += ours.step() if ours.answers else []
        for part in given:
            found[holders[part.row]] += part.tokens
    assert [found[index] for index in range(len(PROMPTS))] == [alone([prompt])[0] for prompt in PROMPTS]
    ours.add(1, PROMPTS[0])
    ours.drop(1)
    assert not ours.answers


def test_an_answer_that_the_context_does_not_hold_is_refused() -> None:
    ours = BlockDecoder(diffusion_model(), MASK_ID, frozenset(), Decoding(BLOCK, BLOCK, max_tokens=9), num_rows=1, context=16)
    with pytest.raises(ValueError, match="a prompt of 8 tokens and 9 of its answer exceed the context 16"):
        ours.add(0, PROMPTS[1])


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="sub_block_size 3 does not divide block_size 4"):
        Decoding(4, 3)
    with pytest.raises(ValueError, match="threshold 1.5 must be in 0..1"):
        Decoding(4, 4, threshold=1.5)
