"""The row cache holds what recomputation would give, whatever was rolled back, moved or grown."""

from __future__ import annotations

import pytest
import torch

from gkt_plugins.speculation.target import TransformersModel


def recomputed(model, rows: list[list[int]]) -> list[torch.Tensor]:
    """Logits behind the last token of each row, from the model's own forward call."""
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0, -1] for row in rows]


def same(got: torch.Tensor, expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_rejected_tokens_leave_no_trace(name, tiny):
    model = tiny(name)
    target = TransformersModel(model)
    rows = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    padded = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
    same(target.forward(padded, [0, 0, 0], slots=[0, 1, 2], last=[4, 1, 2]), recomputed(model, rows))
    for step in range(6):
        # Each row takes a block of four, of which it keeps one, two or four tokens.
        block = torch.randint(64, (3, 4), generator=torch.Generator().manual_seed(step))
        logits = target.forward(block, [len(row) for row in rows])
        for row, tokens, kept in zip(rows, block.tolist(), (1, 2, 4), strict=True):
            row += tokens[:kept]
        same(torch.stack([logits[i, kept - 1] for i, kept in enumerate((1, 2, 4))]), recomputed(model, rows))


def test_keys_and_values_equal_recomputation_after_rollbacks(tiny):
    model = tiny("llama")
    used, fresh = TransformersModel(model), TransformersModel(model)
    rows = [[1, 2, 3], [4, 5, 6]]
    used.forward(torch.tensor(rows), [0, 0])
    used.forward(torch.tensor([[9, 9, 9, 9], [9, 9, 9, 9]]), [3, 3])
    used.forward(torch.tensor([[7, 8], [7, 9]]), [3, 2])
    fresh.forward(torch.tensor([[1, 2, 3, 7, 8], [4, 5, 7, 9, 0]]), [0, 0])
    for ours, theirs in zip(used._cache.layers, fresh._cache.layers, strict=True):
        for row, length in ((0, 5), (1, 4)):
            torch.testing.assert_close(ours.keys[row, :, :length], theirs.keys[row, :, :length], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                ours.values[row, :, :length], theirs.values[row, :, :length], rtol=1e-4, atol=1e-5
            )


def test_a_row_goes_on_in_another_slot_after_a_move(tiny):
    model = tiny("llama")
    target = TransformersModel(model)
    rows = [[1, 2, 3], [4, 5], [6, 7, 8]]
    target.forward(torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8]]), [0, 0, 0])
    target.move(2, 1, 3)
    same(target.forward(torch.tensor([[9], [10]]), [3, 3])[:, -1], recomputed(model, [[*rows[0], 9], [*rows[2], 10]]))


def test_growing_keeps_what_is_there(tiny):
    model = tiny("llama", max_position_embeddings=1024)
    target = TransformersModel(model)
    row = torch.randint(64, (1, 250), generator=torch.Generator().manual_seed(0))
    target.forward(row, [0])
    more = torch.randint(64, (1, 20), generator=torch.Generator().manual_seed(1))
    got = target.forward(more, [250])[:, -1]
    same(got, recomputed(model, [torch.cat([row, more], 1)[0].tolist()]))


def test_a_prompt_may_enter_any_slot_while_others_are_under_way(tiny):
    model = tiny("llama")
    target = TransformersModel(model)
    target.forward(torch.tensor([[1, 2], [3, 4], [5, 6]]), [0, 0, 0])
    target.forward(torch.tensor([[7, 8, 9]]), [0], slots=[1], last=[2])
    got = target.forward(torch.tensor([[10], [11], [12]]), [2, 3, 2])[:, -1]
    same(got, recomputed(model, [[1, 2, 10], [7, 8, 9, 11], [5, 6, 12]]))


def test_only_the_logits_that_are_asked_for_are_computed(tiny):
    target = TransformersModel(tiny("llama"))
    assert target.forward(torch.zeros(2, 5, dtype=torch.int64), [0, 0], last=[4, 1]).shape == (2, 64)
    assert target.forward(torch.zeros(2, 5, dtype=torch.int64), [0, 0]).shape == (2, 5, 64)
