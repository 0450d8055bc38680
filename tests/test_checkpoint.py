import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ccsnet
from ccsnet import checkpoint as ckpt
from ccsnet.checkpoint import BEST, LAST, ClassInfo, find_checkpoint, load_model, read_checkpoint
from ccsnet.errors import InputError
from ccsnet.optim import create_optimizer
from ccsnet.optimizer_state import restore_state, state_tensors
from ccsnet.preflight import check_classes
from ccsnet.segmenter import create_segmenter
from ccsnet.train import train
from tests.shapes import CLASSES, COLOURS, make_shapes, tiny_config, tiny_model

INFO = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS, short_side=64, long_side=96)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint file and its model."""
    torch.manual_seed(0)
    model = create_segmenter(tiny_model(), num_classes=3)
    path = tmp_path / "run" / LAST
    config = tiny_config(Path("shapes"))
    ckpt.save_checkpoint(path, model.state_dict(), config, INFO, step=7, miou=0.5, best_miou=0.625)
    return path, model


def test_round_trip(saved):
    path, model = saved
    found = read_checkpoint(path)
    assert (found.step, found.miou, found.best_miou) == (7, 0.5, 0.625)
    assert found.info == INFO
    assert found.config == tiny_config(Path("shapes"))
    again = load_model(found)
    assert not again.training
    weights = model.state_dict()
    assert list(again.state_dict()) == list(weights)
    assert all(torch.equal(t, weights[name]) for name, t in again.state_dict().items())


def test_the_optimizer_survives(saved, tmp_path):
    _, model = saved
    config = tiny_config(Path("shapes"))
    optimizer = create_optimizer(model, config.optim)
    model(torch.zeros(2, 3, 64, 64)).logits.square().sum().backward()
    optimizer.step()
    path = tmp_path / "with.safetensors"
    training = state_tensors(optimizer)
    ckpt.save_checkpoint(path, model.state_dict(), config, INFO, step=1, training=training)
    fresh = create_optimizer(model, config.optim)
    restore_state(fresh, ckpt.training_tensors(path))
    before, after = optimizer.state_dict(), fresh.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for number, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(after["state"][number][name], value)
    load_model(read_checkpoint(path))  # The extra tensors are no weights.


def test_weights_alone_cannot_be_resumed_from(saved):
    path, model = saved
    optimizer = create_optimizer(model, tiny_config(Path("shapes")).optim)
    with pytest.raises(InputError, match="holds weights alone"):
        restore_state(optimizer, ckpt.training_tensors(path))


def test_a_full_disk_leaves_the_old_file(saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        ckpt.save_checkpoint(path, model.state_dict(), tiny_config(Path("shapes")), INFO, step=8)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [LAST]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated(saved, keep):
    path, _ = saved
    data = path.read_bytes()
    keep = int(len(data) * keep) if isinstance(keep, float) else keep
    path.write_bytes(data[:keep])
    with pytest.raises(InputError, match=r"last\.safetensors is not a whole .* interrupted") as e:
        ccsnet.load(path)
    assert str(len(data[:keep])) in str(e.value)


def test_another_programs_file(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="some other program"):
        ccsnet.load(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": "ccsnet-99"})
    with pytest.raises(InputError, match="'ccsnet-99'; this version reads 'ccsnet-1'"):
        ccsnet.load(path)


@pytest.mark.parametrize("broken", ["info", "state", "config"])
def test_metadata_that_is_not_ours(saved, broken):
    path, _ = saved
    with ckpt._opened(path) as file:
        metadata = dict(file.metadata())
    for text in ('{"step": ', '{"other": 1}', "[]", None):
        changed = {**metadata, broken: text} if text else metadata.copy()
        if text is None:
            del changed[broken]
        save_file(load_file(path), path, changed)
        with pytest.raises(InputError, match=r"last\.safetensors"):
            read_checkpoint(path)


def test_pickles_are_not_run(tmp_path):
    """A checkpoint of torch.save could run code when read; it is refused unread."""
    path = tmp_path / "evil.safetensors"
    torch.save({"anything": Harmful(tmp_path / "ran")}, path)
    with pytest.raises(InputError, match="another kind of file"):
        ccsnet.load(path)
    assert not (tmp_path / "ran").exists()
    for module in (Path(ccsnet.__file__).parent).glob("*.py"):
        text = module.read_text()
        assert "torch.load" not in text, module
        assert "pickle" not in text.replace("allow_pickle=False", ""), module


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_of_another_network(saved):
    path, _ = saved
    found = read_checkpoint(path)
    for model in (tiny_model(head="fcn"), tiny_model(backbone="test_convnext")):
        wrong = dataclasses.replace(found, config=dataclasses.replace(found.config, model=model))
        with pytest.raises(InputError, match=r"last\.safetensors are not those of this network"):
            load_model(wrong)


def test_class_lists_must_agree(saved, shapes):
    from ccsnet.data.opening import open_dataset

    spec, _ = open_dataset(tiny_config(shapes).data)
    found = read_checkpoint(saved[0])
    check_classes(found, spec)
    other = dataclasses.replace(spec, classes=("ground", "ring", "box"))
    with pytest.raises(InputError, match=r"'disc' as class 1, the data set .* has 'ring'"):
        check_classes(found, other)
    more = dataclasses.replace(
        found,
        info=dataclasses.replace(INFO, classes=(*CLASSES, "x"), colours=(*COLOURS, (1, 1, 1))),
    )
    with pytest.raises(InputError, match="4 classes, the data set 'shapes' has 3"):
        check_classes(more, spec)


def test_finding_checkpoints(saved, tmp_path):
    path, _ = saved
    assert find_checkpoint(path) == path
    assert find_checkpoint(str(path.parent)) == path  # Not yet validated: only the last.
    best = path.with_name(BEST)
    shutil.copy(path, best)
    assert find_checkpoint(path.parent) == best
    assert find_checkpoint(path.parent, LAST) == path
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint .*best\.safetensors"):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No run or checkpoint .*nowhere"):
        find_checkpoint(tmp_path / "nowhere")


def test_many_classes_have_another_ignore_index():
    num = 300
    info = ClassInfo(
        dataset="many",
        classes=tuple(f"c{i}" for i in range(num)),
        colours=tuple((i % 256, i // 256, 0) for i in range(num)),
    )
    assert (INFO.ignore_index, info.ignore_index) == (255, 65535)


def test_loading_needs_nothing_else(tmp_path, monkeypatch):
    """Neither the data, nor the backbone's weights, nor the folder that the run was started in."""
    data = make_shapes(tmp_path / "shapes", train=2, val=1)
    backbone = create_segmenter(tiny_model(), num_classes=3).backbone.features
    weights = tmp_path / "backbone.safetensors"
    save_file(backbone.state_dict(), weights)
    config = tiny_config(data, steps=1)
    model = dataclasses.replace(config.model, backbone_weights=str(weights))
    train(dataclasses.replace(config, model=model), tmp_path / "run")
    shutil.rmtree(data)
    weights.unlink()
    moved = tmp_path / "elsewhere"
    (tmp_path / "run" / BEST).rename(moved)
    shutil.rmtree(tmp_path / "run")
    monkeypatch.chdir(tmp_path.parent)
    prediction = ccsnet.load(moved).predict(np.zeros((40, 50, 3), np.uint8))
    assert prediction.label.shape == (40, 50)
    assert prediction.classes == CLASSES


def test_metadata_is_readable_json(saved):
    with ckpt._opened(saved[0]) as file:
        metadata = file.metadata()
    assert json.loads(metadata["info"])["classes"] == list(CLASSES)
    assert json.loads(metadata["config"])["model"]["head"] == "ccs"
