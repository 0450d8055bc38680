"""What is said of backbones and recipes is so, and a cache in the way does no harm."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import backbones as page
from ccsnet import catalogue
from ccsnet.backbones.families import FAMILIES, MIT_WEIGHTS
from ccsnet.backbones.published import published_weights
from ccsnet.backbones.timm import create_backbone
from ccsnet.catalogue import BackboneFacts, Cache, TrainingMemory
from ccsnet.errors import InputError
from ccsnet.loss import segmentation_loss
from ccsnet.recipes import RECIPES, recipe
from ccsnet.segmenter import create_segmenter

FACTS = BackboneFacts(11_000_000, 9.5, (64, 128, 256, 512), (4, 8, 16, 32), 0.25)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ccsnet"


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Names in the order in which they are measured, which takes no time here."""
    names = []

    def measure(name: str) -> BackboneFacts:
        names.append(name)
        if name == "resnet50":
            raise RuntimeError("out of luck\nmore")
        return FACTS

    monkeypatch.setattr(catalogue, "measure_backbone", measure)
    return names


# Figures


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [("resnet50", 4.1), pytest.param("vit_base_patch16_224", 17.5, marks=pytest.mark.slow)],
)
def test_gmacs_are_those_that_the_field_knows(name: str, gmacs: float):
    """At 224x224; the model as published, without the pyramid that is added."""
    counted = catalogue.count_macs(create_backbone(name).features, 224)
    assert counted / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_backbone_facts():
    facts = catalogue.measure_backbone("mobilenetv3_small_100")
    backbone = create_backbone("mobilenetv3_small_100")
    assert facts.parameters == sum(p.numel() for p in backbone.parameters())
    assert (facts.channels, facts.strides) == (backbone.channels, backbone.strides)
    assert 0.2 < facts.gmacs < 0.4
    assert facts.seconds > 0


def test_weights_and_licences():
    assert published_weights("vit_base_patch16_224.mae")[:2] == ("mae", "cc-by-nc-4.0")
    assert published_weights("resnet18")[:2] == ("a1_in1k", "apache-2.0")
    assert published_weights("resnet50.bamboo").licence == "not stated"
    assert published_weights("mit_b2")[:2] == ("-", MIT_WEIGHTS)
    for names in FAMILIES.values():
        assert all(published_weights(name).licence for name in names)


@pytest.mark.parametrize("name", ["test_efficientnet", "mit_b0"])
def test_saved_memory_is_what_training_saves(name: str):
    """On no device and on a real one, whose attention saves a number for each place besides."""
    config = replace(recipe("own").model, backbone=name)
    model = create_segmenter(config, num_classes=7, load_weights=False).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    real: dict[int, torch.Tensor] = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            real[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    image = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        segmentation_loss(model(image), torch.zeros(2, 64, 96, dtype=torch.int64))
    expected = sum(tensor.untyped_storage().nbytes() for tensor in real.values())
    counted = catalogue._saved(model.to("meta"), (2, 3, 64, 96))
    assert counted == pytest.approx(expected, rel=0.01)


def test_memory_follows_the_settings():
    config = recipe("own")
    config = replace(
        config,
        data=replace(config.data, crop=(128, 128)),
        model=replace(config.model, backbone="test_efficientnet"),
    )
    memory = catalogue.training_memory(config)
    sgd = replace(config, optim=replace(config.optim, optimizer="sgd"))
    weights = create_segmenter(config.model, num_classes=20, load_weights=False)
    trained = sum(p.nbytes for p in weights.parameters())
    assert memory.state - catalogue.training_memory(sgd).state == trained
    assert memory.state > 4 * trained
    assert memory.of(8) == memory.state + 8 * memory.per_image
    half = replace(config, data=replace(config.data, crop=(64, 128)))
    assert catalogue.training_memory(half).per_image == pytest.approx(
        memory.per_image / 2, rel=0.05
    )
    frozen = replace(config, model=replace(config.model, frozen_stages=4))
    assert catalogue.training_memory(frozen).of(8) < 0.9 * memory.of(8)


STEP = """
import torch
from ccsnet.loss import segmentation_loss
from ccsnet.optim import create_optimizer
from ccsnet.recipes import recipe
from ccsnet.segmenter import create_segmenter
torch.set_num_threads(1)
config = recipe("own")
def held(what):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith(what)).split()[1])
before = held("VmRSS")
model = create_segmenter(config.model, num_classes=20, load_weights=False).train()
optimizer = create_optimizer(model, config.optim)
for _ in range(2):
    image = torch.zeros(4, 3, 512, 512, dtype=torch.uint8)
    losses = segmentation_loss(model(image), torch.zeros(4, 512, 512, dtype=torch.int64))
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
print(held("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's own figures")
def test_memory_is_about_what_a_step_takes():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    ratio = int(done.stdout) / catalogue.training_memory(recipe("own")).of(4)
    assert 0.9 < ratio < 1.5


# Tables


def test_rows_are_measured_once(folder, measured):
    first = list(catalogue.backbone_lines("resnet18"))
    second = list(catalogue.backbone_lines("resnet18"))
    assert measured == ["resnet18"]
    assert first[0] == second[0]
    assert catalogue.machine() in first[0]
    assert first[2] == second[2]
    assert first[2].split()[:8] == ["resnet18", "11.0", "9.5", "64", "128", "256", "512", "4"]
    assert "--again" in second[3]
    list(catalogue.backbone_lines("resnet18", again=True))
    assert measured == ["resnet18"] * 2


def test_a_row_that_fails_leaves_the_others(folder, measured):
    lines = list(catalogue.backbone_lines("resnet"))
    assert "resnet50  failed: out of luck" in lines
    assert [line.split()[0] for line in lines[2:5]] == ["resnet18", "resnet50", "resnet50d"]
    list(catalogue.backbone_lines("resnet"))
    assert measured == ["resnet18", "resnet50", "resnet50d", "resnet50"]


def test_columns_stand_below_each_other(folder, measured):
    lines = list(catalogue.backbone_lines("vit"))
    headings, *rows = [line for line in lines[1:] if "  " in line]
    for column in ("channels", "strides", "weights"):
        start = headings.index(column)
        assert all(row[start - 1] == " " and row[start] != " " for row in rows)


def test_another_machine_measures_anew(folder, measured, monkeypatch):
    list(catalogue.backbone_lines("resnet18"))
    monkeypatch.setattr("ccsnet.machine.processor", lambda: "another")
    list(catalogue.backbone_lines("resnet18"))
    assert measured == ["resnet18"] * 2
    assert len(json.loads((folder / "backbones.json").read_text())) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "\udcff", '{"key": 3}', '{"key": []}']
)
def test_a_damaged_cache_is_ignored(folder, text: str):
    folder.mkdir()
    file = folder / "x.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    cache = Cache("x.json", "key", FACTS)
    assert cache.read("resnet18") is None
    cache.write("resnet18", FACTS)
    assert cache.read("resnet18") == FACTS


@pytest.mark.parametrize(
    "row",
    [None, [], {}, {"state": 1}, {"state": "1", "per_image": 2}, {"state": 1, "per_image": None}],
)
def test_a_damaged_row_is_ignored(folder, row):
    folder.mkdir()
    (folder / "x.json").write_text(
        json.dumps({"key": {"name": row, "good": {"state": 1, "per_image": 2}}})
    )
    cache = Cache("x.json", "key", TrainingMemory(0, 0))
    assert cache.read("name") is None
    assert cache.read("good") == TrainingMemory(1, 2)


def test_a_folder_that_cannot_be_written_to_costs_only_time(tmp_path, monkeypatch, measured):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert list(catalogue.backbone_lines("resnet18"))[2].startswith("resnet18 ")


def test_recipes_of_which_none_is_built_in(folder, monkeypatch):
    monkeypatch.setattr(catalogue, "training_memory", lambda config: TrainingMemory(2**30, 2**29))
    own = next(line for line in catalogue.recipe_lines("own") if line.startswith("own "))
    assert own.split()[:6] == ["own", "resnet18", "your", "own", "512x512", "8"]
    assert own.split()[10:] == ["0.5", "5.0", "a1_in1k", "apache-2.0"]


def test_all_recipes_are_listed(folder, monkeypatch):
    monkeypatch.setattr(catalogue, "training_memory", lambda config: TrainingMemory(2**30, 2**29))
    lines = list(catalogue.recipe_lines())
    assert [line.split()[0] for line in lines[1 : 1 + len(RECIPES)]] == list(RECIPES)
    assert any("640x640" in line for line in lines)
    assert sum("cc-by-nc-4.0" in line for line in lines) == 1
    assert sum(MIT_WEIGHTS in line for line in lines) == 2


def test_accumulating_takes_less_memory(folder):
    config = recipe("own")
    cells = catalogue.recipe_cells("own", config, TrainingMemory(0, 2**30))
    halved = replace(config, train=replace(config.train, accumulate=2))
    assert cells[7] == "8.0"
    assert catalogue.recipe_cells("own", halved, TrainingMemory(0, 2**30))[7] == "4.0"


def test_no_such_name(folder):
    with pytest.raises(InputError, match="No backbone is called 'resnett'"):
        list(catalogue.backbone_lines("resnett"))
    with pytest.raises(InputError, match="No recipe is called 'swni'"):
        list(catalogue.recipe_lines("swni"))


# The page


def test_the_page_ignores_times_only():
    cells = ["ResNet", *catalogue.backbone_cells("resnet18", FACTS)]
    slower = ["ResNet", *catalogue.backbone_cells("resnet18", FACTS._replace(seconds=9.0))]
    other = ["ResNet", *catalogue.backbone_cells("resnet18", FACTS._replace(gmacs=9.0))]
    rows = [f"| {' | '.join(row)} |" for row in (cells, slower, other)]
    first, second, third = (page.without_times([row]) for row in rows)
    assert first == second != third


def test_the_page_names_every_backbone():
    text = page.PAGE.read_text("utf-8")
    for names in FAMILIES.values():
        assert all(f"| {name} |" in text for name in names)


@pytest.mark.slow
def test_the_page_is_current():
    assert page.stale() == []
