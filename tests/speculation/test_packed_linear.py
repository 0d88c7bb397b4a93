"""Packed layers compute what the layers compute, follow their weights, and leave nothing behind."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gkt_plugins.speculation.packed_linear import packed_linears


def model(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 384, bias=bias), nn.GELU(), nn.Linear(384, 256, bias=bias), nn.Linear(256, 8))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 5, 48])
def test_packed_layers_give_the_same_numbers(rows: int, bias: bool) -> None:
    net, x = model(bias=bias), torch.randn(2, rows, 512)
    with torch.inference_mode():
        expected = net(x)
        with packed_linears(net):
            got = net(x)
    # sums over at most 512 products of order 1: float32 rounding is about 1e-6 of the result's spread
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_large_layers_are_really_packed_and_small_ones_are_not() -> None:
    net = model()
    with packed_linears(net):
        assert ["forward" in layer.__dict__ for layer in net] == [True, False, True, False]


def test_for_many_rows_smaller_layers_are_packed_too_and_give_the_same_numbers() -> None:
    net, x = nn.Sequential(nn.Linear(160, 160), nn.GELU(), nn.Linear(160, 8)), torch.randn(400, 160)
    with torch.inference_mode():
        expected = net(x)
        with packed_linears(net):
            assert not any("forward" in layer.__dict__ for layer in net)
        with packed_linears(net, rows="many"):
            assert ["forward" in layer.__dict__ for layer in net] == [True, False, False]
            torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", ["in place", "another tensor"])
def test_weights_that_change_are_packed_again(change: str) -> None:
    net, x = model(), torch.randn(3, 512)
    with torch.inference_mode(), packed_linears(net):
        before = net(x)
    with torch.no_grad():
        if change == "in place":
            net[0].weight.mul_(2)
        else:
            net[0].weight.data = net[0].weight.data * 2
    with torch.inference_mode():
        expected = net(x)
        with packed_linears(net):
            torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_outside_the_context_the_model_is_as_it_was_also_after_an_error() -> None:
    net = model()
    with pytest.raises(ZeroDivisionError), packed_linears(net):
        raise ZeroDivisionError
    assert all("forward" not in layer.__dict__ for layer in net)
    copy.deepcopy(net)
    pickle.dumps(net)


def test_models_that_are_not_float32_are_left_alone() -> None:
    net = model().to(torch.bfloat16)
    with packed_linears(net):
        assert all("forward" not in layer.__dict__ for layer in net)


def test_a_model_whose_copy_would_take_too_much_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkt_plugins.speculation.packed_linear._MEMORY_SHARE", 0.0)
    net = model()
    with packed_linears(net):
        assert all("forward" not in layer.__dict__ for layer in net)
