"""Functions of an engine are replaced once, by name, and only where they are what was tried."""

from types import ModuleType

import pytest
import torch

from gkt_plugins.errors import BackendError
from gkt_vllm.cpu_expand import expand_batch_to_tokens, is_broken
from gkt_vllm.patching import replace, replaced


def module_with(function):
    module = ModuleType("engine.part")
    module.work = function
    return module


def twice(original):
    return lambda *args, **kwargs: 2 * original(*args, **kwargs)


def test_the_wrapper_takes_the_place_and_is_named_with_its_reason():
    module = module_with(lambda a, b: a + b)
    replace(module, "work", ("a",), twice, "testing")
    assert module.work(1, b=2) == 6
    assert replaced()["engine.part.work"] == "testing"


def test_a_second_time_changes_nothing():
    module = module_with(lambda a: a)
    replace(module, "work", ("a",), twice, "testing")
    replace(module, "work", ("a",), twice, "testing")
    assert module.work(1) == 2


def test_another_signature_is_refused_with_both():
    module = module_with(lambda a, c: a)
    with pytest.raises(BackendError, match=r"takes \(a, c\) in this vLLM, expected \(a, b, …\)"):
        replace(module, "work", ("a", "b"), twice, "testing")
    assert module.work(1, 2) == 1


def test_a_missing_function_is_refused_by_name():
    with pytest.raises(BackendError, match=r"has no engine\.part\.other, which is needed for testing"):
        replace(module_with(lambda: 0), "other", (), twice, "testing")


def test_expanding_gives_each_token_its_requests_value():
    got = expand_batch_to_tokens(torch.tensor([0.5, 0.0, 2.0]), torch.tensor([2, 5, 6]), 6, 0, 1)
    assert got.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0, 2.0]
    ids = expand_batch_to_tokens(torch.tensor([3, 0], dtype=torch.int32), torch.tensor([0, 2]), 2)
    assert (ids.tolist(), ids.dtype) == ([0, 0], torch.int32)


def test_only_a_function_that_gives_something_else_is_mended():
    assert not is_broken(expand_batch_to_tokens)
    assert is_broken(lambda x, cu, n, a, b: x.new_empty(n).fill_(7.0))


def test_a_function_that_cannot_be_asked_is_mended():
    def not_ready(*arguments):
        raise TypeError("'function' object is not subscriptable")

    assert is_broken(not_ready)
