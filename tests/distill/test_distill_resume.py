"""An interrupted run goes on as if nothing had happened, and what was written before stays whole."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from gkt_plugins.distill.checkpoints import Checkpoints
from gkt_plugins.distill.run import distill
from gkt_plugins.errors import BackendError, ConfigError


class StoppedError(Exception):
    """Ends a run from inside, as a power cut would."""


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            raise StoppedError


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"policy": "mixture", "rest": "ground_truth"}, "loss": {"divergence": "jsd"}},
        {"train": {"optimizer": "adafactor", "accumulation": 2, "steps_per_rollout": 4}},
        {"train": {"lora": {"rank": 2}}},
    ],
    ids=["on-policy", "mixture", "adafactor", "lora"],
)
@pytest.mark.parametrize("stop", [4, 5])
def test_a_run_that_was_interrupted_has_the_losses_and_weights_of_one_that_was_not(tiny_options, sections, stop):
    whole = distill(tiny_options("whole", **sections))
    with pytest.raises(StoppedError):
        distill(tiny_options("parts", **sections), callbacks=[StopAfter(stop)])
    parts = distill(tiny_options("parts", **sections), resume=True)
    assert parts.losses == whole.losses
    assert parts.acceptance == whole.acceptance
    assert (parts.tokens, parts.best_step) == (whole.tokens, whole.best_step)
    for name, tensor in load_file(whole.output / "model.safetensors").items():
        torch.testing.assert_close(load_file(parts.output / "model.safetensors")[name], tensor, rtol=0, atol=0)


def test_a_run_that_was_interrupted_before_its_first_checkpoint_begins_again(tiny_options):
    whole = distill(tiny_options("whole"))
    with pytest.raises(StoppedError):
        distill(tiny_options("parts"), callbacks=[StopAfter(1)])
    assert distill(tiny_options("parts"), resume=True).losses == whole.losses


def test_a_run_that_had_only_its_result_to_write_writes_it_when_resumed(tiny_options, tmp_path):
    whole = distill(tiny_options("whole"))
    (whole.output / "model.safetensors").unlink()
    again = distill(tiny_options("whole"), resume=True)
    assert again.losses == whole.losses
    assert (again.output / "model.safetensors").exists()


def test_a_finished_run_is_not_overwritten_without_being_asked(tiny_options):
    distill(tiny_options())
    with pytest.raises(ConfigError, match=r"has a run already; continue it with --resume, or choose another output"):
        distill(tiny_options())


def test_resuming_with_other_options_names_the_one_that_differs(tiny_options):
    distill(tiny_options())
    with pytest.raises(ConfigError, match=r"loss\.beta is another than in .*options\.json"):
        distill(tiny_options(loss={"beta": 0.25}), resume=True)


def test_a_half_written_checkpoint_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.begin(3) / "weights").write_text("whole")
    checkpoints.complete(3)
    (checkpoints.begin(6) / "weights").write_text("ha")
    assert checkpoints.latest() == tmp_path / "checkpoint-3"
    checkpoints.begin(6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-6", "checkpoint-3"]
    assert list((tmp_path / ".unfinished-6").iterdir()) == []


def test_old_checkpoints_make_room_but_the_best_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 6, 9):
        checkpoints.begin(step)
        checkpoints.complete(step, keep=[3])
    assert checkpoints.steps() == [3, 9]


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FillDisk(TrainerCallback):
    """Leaves no room after a step."""

    def __init__(self, step: int, size: int) -> None:
        self._step, self._size = step, size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# the weights have 13 kB, the optimiser's state has twice as much: safetensors fails, or torch
@pytest.mark.parametrize("room", [12_000, 20_000])
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(tiny_options, room):
    whole = distill(tiny_options("whole"))
    options = tiny_options("parts")
    checkpoints = options.output_dir / "checkpoints"
    with no_file_beyond(resource.RLIM_INFINITY), pytest.raises(BackendError) as caught:
        distill(options, callbacks=[FillDisk(5, room)])
    sentence = str(caught.value)
    assert sentence.startswith("the checkpoint of step 6 could not be written (")
    assert sentence.endswith(
        f"free some space: {checkpoints / 'checkpoint-3'} is intact, continue from there with --resume"
    )
    assert "\n" not in sentence
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-3"]
    assert distill(options, resume=True).losses == whole.losses


def test_a_result_that_cannot_be_written_can_be_written_later(tiny_options):
    options = tiny_options(train={"save_steps": 7})
    with no_file_beyond(resource.RLIM_INFINITY), pytest.raises(BackendError, match="finish the run with --resume"):
        distill(options, callbacks=[FillDiskAtTheEnd()])
    assert not (options.output_dir / "provenance.json").exists()
    assert (distill(options, resume=True).output / "provenance.json").exists()


class FillDiskAtTheEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
