import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ccsnet import trial
from ccsnet.precision import Mode, autocast, has_bf16, in_memory_order
from ccsnet.trial import choose_inference_mode, choose_mode
from tests.processes import ENVIRONMENT, ROOT, launch

CPU = torch.device("cpu")
FASTEST = Mode("bf16", True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ccsnet"


@pytest.fixture(autouse=True)
def _with_bf16(monkeypatch):
    monkeypatch.setattr(trial, "has_bf16", lambda device: True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()


def loss(network, image, label):
    assert image.shape[-2:] == label.shape[-2:]
    return network(image.float()).square().mean()


def batch(images=2, height=8, width=8):
    return torch.zeros(images, 3, height, width), torch.zeros(images, height, width)


@pytest.fixture
def measured(monkeypatch) -> list[list[Mode]]:
    """What was measured; FASTEST is the fastest."""
    calls = []

    def measure(modes, run, longest, device):
        calls.append(list(modes))
        return FASTEST if FASTEST in modes else modes[-1], "tried: float32 2 ms"

    monkeypatch.setattr(trial, "_measure", measure)
    return calls


def test_what_is_settled_is_not_tried(model, measured, folder):
    for name in ("float32", "bf16", "fp16"):
        for order in (True, False):
            found = choose_mode(model, *batch(), loss, precision=name, channels_last=order)
            assert found[0] == Mode(name, order)
    assert measured == []
    assert not folder.exists()


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("order", [None, True, False])
def test_what_is_open_is_tried(model, measured, monkeypatch, bf16, order):
    monkeypatch.setattr(trial, "has_bf16", lambda device: bf16)
    mode, _ = choose_mode(model, *batch(), loss, channels_last=order)
    names = ["float32", "bf16"] if bf16 else ["float32"]
    orders = [False, True] if order is None else [order]
    modes = [Mode(name, o) for name in names for o in orders]
    assert measured == ([modes] if len(modes) > 1 else [])
    assert mode == (FASTEST if FASTEST in modes else modes[-1])


def test_a_trial_leaves_everything_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    random = torch.get_rng_state()
    pixels = image.clone()
    mode, told = choose_mode(model, image, image[:, 0], loss)
    assert told.startswith(f"Precision {mode.precision}")
    assert told.count(" ms") == 4
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(image, pixels)


class Clock:
    """A machine on which passes take as long as is said, and nothing else takes time."""

    def __init__(self, seconds, monkeypatch):
        self.now, self.seconds, self.passes = 0.0, seconds, []
        monkeypatch.setattr(trial.time, "perf_counter", lambda: self.now)

    def run(self, mode, side):
        self.passes.append((mode, side))
        self.now += self.seconds(mode, side)


MODES = [Mode(name, order) for name in ("float32", "bf16") for order in (False, True)]


def test_the_fastest_wins_whatever_first_passes_take(monkeypatch):
    times = dict(zip(MODES, (0.04, 0.03, 0.02, 0.01), strict=True))

    def seconds(mode, side):
        first = (mode, side) not in clock.passes[:-1]
        return times[mode] + (5.0 if first and mode == MODES[3] else 0.0)

    clock = Clock(seconds, monkeypatch)
    mode, tried = trial._measure(MODES, clock.run, 64, CPU)
    assert mode == MODES[3]
    assert tried == (
        "tried: float32 40 ms, float32 channels-last 30 ms, bf16 20 ms, bf16 channels-last 10 ms, "
        "on 64 pixels"
    )


@pytest.mark.parametrize("longest", [64, 128, 200, 512, 2048])
@pytest.mark.parametrize("pace", [1e-9, 1e-7, 1e-6, 1e-5, 1e-4])
def test_a_trial_is_as_large_as_a_second_allows(monkeypatch, longest, pace):
    clock = Clock(lambda mode, side: pace * side**2, monkeypatch)
    trial._measure(MODES, clock.run, longest, CPU)
    sides = [side for _, side in clock.passes]
    smallest, side = min(128, longest), sides[-1]
    assert sides == sorted(sides)
    assert sides[0] == smallest
    assert side <= longest
    round_ = len(MODES) * pace * side**2  # A round that has begun is ended.
    took = clock.now - pace * smallest**2  # The very first pass is beside it.
    assert took <= trial.TRIAL_SECONDS + round_ or side == smallest
    assert took <= 2.5 * round_ or took <= trial.TRIAL_SECONDS + round_
    if side < longest:  # Twice the side would have taken too long.
        assert 2 * len(MODES) * pace * (2 * side) ** 2 > trial.TRIAL_SECONDS / 2
    assert 2 * len(MODES) <= sides.count(side) <= (1 + trial.MAX_ROUNDS) * len(MODES) + 1


def test_the_middle_is_seen():
    maps = torch.arange(7 * 10).view(1, 7, 10)
    assert trial.middle(maps, 4).tolist() == maps[:, 1:5, 3:7].tolist()
    assert trial.middle(maps, 8).shape == (1, 7, 8)
    assert torch.equal(trial.middle(maps, 10), maps)


def test_batches_are_small_and_their_images_of_one_size_with_the_labels(model, monkeypatch):
    seen = []

    def run_once(modes, run, longest, device):
        run(modes[0], 4)
        return modes[0], ""

    def looking(network, image, label):
        seen.append((tuple(image.shape), tuple(label.shape)))
        return loss(network, image, label)

    monkeypatch.setattr(trial, "_measure", run_once)
    choose_mode(model, *batch(5, 8, 16), looking)
    assert seen == [((2, 3, 4, 4), (2, 4, 4))]


def test_what_was_found_is_kept(model, measured, folder):
    first, told = choose_mode(model, *batch(), loss)
    second, again = choose_mode(model, *batch(), loss)
    assert first == second == FASTEST
    assert len(measured) == 1
    assert told == "Precision bf16 channels-last (tried: float32 2 ms)"
    assert again == (
        "Precision bf16 channels-last (kept from an earlier trial; delete "
        f"{folder / 'trials.json'} to try again; tried: float32 2 ms)"
    )
    (folder / "trials.json").unlink()
    assert choose_mode(model, *batch(), loss)[1] == told
    assert len(measured) == 2


def test_weights_do_not_change_what_is_kept(model, measured):
    choose_mode(model, *batch(), loss)
    nn.init.ones_(model[0].weight)
    choose_mode(model, *batch(), loss)
    assert len(measured) == 1


def test_what_it_depends_on_is_told_apart(model, measured, monkeypatch):
    choose = functools.partial(choose_mode, loss=loss)
    choose(model, *batch())
    changes = [
        lambda: choose(model, *batch(height=9)),
        lambda: choose(model, *batch(images=1)),
        lambda: choose(model, *batch(), key="another head"),
        lambda: choose(model, *batch(), channels_last=True),
        lambda: choose(nn.Sequential(*model, nn.ReLU()), *batch()),
        lambda: choose(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), *batch()),
        lambda: choose(copy.deepcopy(model).requires_grad_(False).append(model[0]), *batch()),
        lambda: choose_inference_mode(lambda mode: model, model, 3),
        lambda: choose_inference_mode(lambda mode: model, model, 4, channels_last=True),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        assert len(measured) == number
        change()
        assert len(measured) == number
    monkeypatch.setattr(trial, "machine", lambda: "another")
    choose(model, *batch())
    assert len(measured) == len(changes) + 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"precision": "bf16"}',
        '{"precision": "int8", "channels_last": true, "tried": ""}',
        '{"precision": "bf16", "channels_last": 1, "tried": ""}',
        '{"precision": ["bf16"], "channels_last": true, "tried": ""}',
    ],
)
def test_a_damaged_file_is_measured_again(model, measured, folder, text):
    choose_mode(model, *batch(), loss)
    path = folder / "trials.json"
    whole = path.read_text()
    begin = whole.index("{", whole.index("{", whole.index("{") + 1) + 1)  # Of the innermost.
    end = whole.index("}") + 1
    for number, damaged in enumerate((text, whole[:begin] + text + whole[end:]), start=2):
        path.write_text(damaged)
        for _ in range(2):  # Then it is whole again.
            assert choose_mode(model, *batch(), loss)[0] == FASTEST
            assert len(measured) == number


def test_a_mode_that_the_machine_no_longer_has_is_not_taken(model, measured, folder):
    choose_mode(model, *batch(), loss)
    path = folder / "trials.json"
    path.write_text(path.read_text().replace('"precision": "bf16"', '"precision": "fp16"'))
    assert choose_mode(model, *batch(), loss)[0] == FASTEST
    assert len(measured) == 2


def test_a_folder_that_cannot_be_written_to(model, measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose_mode(model, *batch(), loss)[0] == FASTEST
    assert choose_mode(model, *batch(), loss)[0] == FASTEST
    assert len(measured) == 2


AT_ONCE = """
import time, torch
from torch import nn
from ccsnet import trial
trial.has_bf16 = lambda device: True
def measure(modes, run, longest, device):
    time.sleep(0.5)
    print("measured", end=" ")
    return modes[-1], ""
trial._measure = measure
model = nn.Conv2d(3, 4, 1)
print(trial.choose_inference_mode(lambda mode: model, model, 3)[0].precision)
"""


@pytest.mark.slow
def test_of_programs_at_once_one_measures():
    command = [sys.executable, "-c", AT_ONCE]
    environment = os.environ | ENVIRONMENT
    programs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        for _ in range(3)
    ]
    said = sorted(program.communicate()[0].strip() for program in programs)
    assert said == ["bf16", "bf16", "measured bf16"]


def test_predicting_is_tried_without_gradients(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    seen = []

    def network(mode):
        def predict(image):
            seen.append((mode.precision, tuple(image.shape), torch.is_grad_enabled()))
            return model(image.float())

        return predict

    mode, told = choose_inference_mode(network, model, 3)
    assert mode.precision in told
    assert {precision for precision, _, _ in seen} == {"float32", "bf16"}
    assert not any(grad for _, _, grad in seen)
    assert all(shape[:2] == (1, 3) and 128 <= shape[2] <= 512 for _, shape, _ in seen)


def test_autocast_in_each_mode():
    conv, image = nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)
    with autocast(Mode("bf16", False), CPU):
        assert conv(image).dtype == torch.bfloat16
    with autocast(Mode("float32", False), CPU):
        assert conv(image).dtype == torch.float32


def test_memory_order():
    image = torch.zeros(2, 3, 4, 5)
    for order, expected in ((True, torch.channels_last), (False, torch.contiguous_format)):
        made = in_memory_order(image, Mode("float32", order))
        assert made.is_contiguous(memory_format=expected)
    conv = in_memory_order(nn.Conv2d(3, 4, 3), Mode("float32", True))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_is_known_for_every_device():
    assert isinstance(has_bf16(CPU), bool)
    assert not has_bf16(torch.device("mps"))


@pytest.mark.slow
def test_processes_that_evaluate_together_agree(run, tmp_path):
    words = ("-m", "ccsnet", "evaluate", str(run.out), "--precision", "auto", "--cpu")
    ended = launch(words, 2, env={"XDG_CACHE_HOME": str(tmp_path)}, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout + ended.stderr).count("Precision ") == 1
    assert (tmp_path / "ccsnet" / "trials.json").exists() == has_bf16(CPU)
