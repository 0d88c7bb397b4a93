"""Sampling options per row, against transformers' own processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation import logits_process as hf

from gkt_plugins.contracts import Sampling
from gkt_plugins.speculation.noise import ACCEPT, DRAFT, SAMPLE, uniform
from gkt_plugins.speculation.sampling import ProcessorError, RowOptions, sample

CPU = torch.device("cpu")
VOCAB = 2000

OPTIONS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=0.9, top_k=50, top_p=0.9),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.0, repetition_penalty=1.3, top_p=0.95),
    Sampling(repetition_penalty=1.7),
]


def by_transformers(options: Sampling, ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    processors = hf.LogitsProcessorList()
    if options.repetition_penalty != 1:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature:
        processors.append(hf.TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            processors.append(hf.TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            processors.append(hf.TopPLogitsWarper(options.top_p))
        if options.min_p:
            processors.append(hf.MinPLogitsWarper(options.min_p))
    scores = processors(torch.tensor([ids]), logits[None].clone())[0]
    if not options.temperature:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).float()
    return torch.softmax(scores, -1)


@pytest.mark.parametrize("sharpness", [0.5, 4.0], ids=["flat", "sharp"])
def test_every_position_of_every_row_has_the_distribution_that_transformers_gives_it(sharpness):
    generator = torch.Generator().manual_seed(0)
    width = 3
    logits = sharpness * torch.randn(len(OPTIONS), width + 1, VOCAB, generator=generator)
    lengths = [4 + row for row in range(len(OPTIONS))]
    ids = torch.randint(VOCAB, (len(OPTIONS), 20), generator=generator)
    drafted = torch.randint(VOCAB, (len(OPTIONS), width), generator=generator)
    options = RowOptions.pack(OPTIONS, [()] * len(OPTIONS), CPU)
    probs = options.distribution(options.process(logits, ids, lengths, drafted, 0))
    for row, own in enumerate(OPTIONS):
        for j in range(width + 1):
            seen = ids[row, : lengths[row]].tolist() + drafted[row, :j].tolist()
            assert torch.allclose(probs[row, j], by_transformers(own, seen, logits[row, j]), atol=1e-6), (row, j)


def test_a_draft_position_sees_the_tokens_drafted_before_it():
    logits = torch.zeros(1, 4)
    options = RowOptions.pack([Sampling(temperature=1.0, repetition_penalty=2.0)], [()], CPU)
    logits[0] = torch.tensor([1.0, 1.0, 1.0, 1.0])
    scores = options.process(logits[:, None], torch.tensor([[0, 3]]), [1], torch.tensor([[2]]), 1)
    assert scores[0, 0].tolist() == [0.5, 1.0, 0.5, 1.0]  # 0 from the prompt, 2 drafted; 3 is padding


def test_processors_see_their_own_row_unpadded_at_every_position():
    seen: dict[str, list[list[int]]] = {"a": [], "b": []}

    def recorder(name):
        def processor(ids, scores):
            seen[name].append(ids[0].tolist())
            return scores

        return processor

    options = RowOptions.pack([Sampling()] * 2, [[recorder("a")], [recorder("b")]], CPU)
    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    options.process(torch.zeros(2, 3, 8), ids, [3, 1], torch.tensor([[5, 6], [7, 7]]), 0)
    assert seen["a"] == [[1, 2, 3], [1, 2, 3, 5], [1, 2, 3, 5, 6]]
    assert seen["b"] == [[4], [4, 7], [4, 7, 7]]


def test_a_failing_processor_is_named_with_its_row():
    def broken(ids, scores):
        raise RuntimeError("no")

    options = RowOptions.pack([Sampling()] * 2, [(), [broken]], CPU)
    with pytest.raises(ProcessorError, match="function failed: RuntimeError") as caught:
        options.process(torch.zeros(2, 1, 8), torch.zeros(2, 1, dtype=torch.int64), [1, 1], torch.zeros(2, 0), 0)
    assert caught.value.row == 1


def test_sampling_inverts_the_cumulative_sum():
    weights = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]])
    draws = {u: int(sample(weights, torch.tensor([u]))) for u in (0.0, 0.2499, 0.25, 0.99999994)}
    assert draws == {0.0: 1, 0.2499: 1, 0.25: 3, 0.99999994: 3}


def test_no_draw_falls_behind_the_last_token_that_has_weight():
    weights = torch.rand(1000, 3001)
    weights[:, -3000:] *= 1e-3
    weights[:, -1] = 0
    assert (sample(weights, torch.full((1000,), 1 - 2.0**-24)) < 3000).all()


def test_noise_is_uniform_and_its_streams_do_not_depend_on_each_other():
    seeds = np.arange(200, dtype=np.uint64)
    blocks = np.arange(50, dtype=np.uint64)
    grid = [
        uniform(seeds, np.full(200, n, dtype=np.uint64), 5, stream)
        for n in blocks
        for stream in (ACCEPT, SAMPLE, DRAFT)
    ]
    draws = np.concatenate([part.ravel() for part in grid])
    assert draws.min() >= 0
    assert draws.max() < 1
    # 150,000 draws; the seed is fixed, and a uniform source gives a p-value below 1e-4 once in ten thousand times.
    assert stats.kstest(draws, "uniform").pvalue > 1e-4
    by_stream = [np.concatenate([part.ravel() for part in grid[stream::3]]) for stream in range(3)]
    # Correlation of n = 50,000 independent draws has a standard deviation of 1/sqrt(n) = 0.0045; four are 0.018.
    assert np.abs(np.corrcoef(by_stream) - np.eye(3)).max() < 0.018
    by_lane = np.concatenate(grid).T
    assert np.abs(np.corrcoef(by_lane) - np.eye(5)).max() < 0.024  # 30,000 draws each


def test_noise_of_a_row_does_not_depend_on_the_other_rows():
    seeds, positions = np.array([5, 6], dtype=np.uint64), np.array([0, 9], dtype=np.uint64)
    assert (uniform(seeds, positions, 4, ACCEPT)[1] == uniform(seeds[1:], positions[1:], 4, ACCEPT)[0]).all()
