from collections.abc import Sequence

import torch
from torch import Tensor

from gkt_plugins.distill.samples import Sample, fixed_key
from gkt_plugins.distill.target_scores import HiddenStore


class Target:
    """Its state at a token is (token, place in the answer, 1)."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        self.asked += [sample.answer for sample in samples]
        rows = [[token, place, 1] for sample in samples for place, token in enumerate(sample.answer)]
        return torch.tensor(rows, dtype=torch.float32)


def fixed(*answer: int) -> Sample:
    return Sample((1,), answer, "target", fixed_key((1,), answer))


def fresh(*answer: int) -> Sample:
    return Sample((1,), answer, "draft")


def test_what_is_kept_is_what_would_be_computed() -> None:
    samples = [fixed(3, 4, 2), fresh(5, 2), fixed(6, 2)]
    target = Target()
    store = HiddenStore(target)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0), (2,)):
        chosen = [samples[i] for i in order]
        assert torch.equal(store.states(chosen), Target()(chosen))
    assert target.asked.count((3, 4, 2)) == target.asked.count((6, 2)) == 1
    assert target.asked.count((5, 2)) == 3  # the draft's own answer was computed each time
    assert store.found == 4


def test_the_least_recently_used_leave_when_room_runs_out() -> None:
    target = Target()
    store = HiddenStore(target, max_bytes=2 * 2 * 3 * 4)  # two samples of two tokens of three floats
    a, b, c = fixed(3, 2), fixed(4, 2), fixed(5, 2)
    for sample in (a, b, a, c):  # c drives b out: a was used since
        store.states([sample])
    assert store.bytes == 2 * 2 * 3 * 4
    target.asked.clear()
    store.states([a, c])
    assert target.asked == []
    store.states([b])
    assert target.asked == [(4, 2)]


def test_a_sample_larger_than_the_store_drives_nothing_out() -> None:
    target = Target()
    store = HiddenStore(target, max_bytes=2 * 3 * 4)
    store.states([fixed(3, 2)])
    store.states([fixed(7, 7, 7, 2)])
    store.states([fixed(3, 2)])
    assert target.asked == [(3, 2), (7, 7, 7, 2)]


def test_a_store_without_room_computes_everything() -> None:
    target = Target()
    store = HiddenStore(target, max_bytes=0)
    for _ in range(2):
        assert torch.equal(store.states([fixed(3, 2), fixed(3, 2)]), Target()([fixed(3, 2)] * 2))
    assert len(target.asked) == 4
    assert store.bytes == 0
