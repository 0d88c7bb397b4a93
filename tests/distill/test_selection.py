import math

import pytest
import torch

from gkt_plugins.distill.selection import select_tokens
from gkt_plugins.errors import ConfigError


def test_the_tokens_furthest_behind_the_reference_are_kept() -> None:
    draft = torch.tensor([5.0, 1.0, 3.0, 2.0, 9.0])
    reference = torch.tensor([4.9, 0.1, 0.5, 1.9, 9.0])  # behind by 0.1, 0.9, 2.5, 0.1, 0
    assert select_tokens(draft, reference, 0.4).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("n", [1, 3, 10, 1000])
@pytest.mark.parametrize("keep", [0.01, 0.4, 0.999, 1.0])
def test_the_share_is_rounded_up_so_that_something_is_always_kept(n: int, keep: float) -> None:
    losses = torch.rand(n, generator=torch.Generator().manual_seed(0))
    assert int(select_tokens(losses, torch.zeros(n), keep).sum()) == math.ceil(keep * n)


def test_of_equals_the_earlier_ones_are_kept() -> None:
    assert select_tokens(torch.ones(4), torch.ones(4), 0.5).tolist() == [True, True, False, False]


def test_no_tokens_are_no_tokens() -> None:
    assert select_tokens(torch.ones(0), torch.ones(0), 0.4).tolist() == []


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(ConfigError, match=r"share of tokens to keep must be in \(0, 1\], got"):
        select_tokens(torch.ones(3), torch.ones(3), keep)
