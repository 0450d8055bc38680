import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ccsnet.data.check import channel_statistics, check_labels
from ccsnet.data.loading import (
    batches_of_equal_size,
    evaluation_samples,
    sample_order,
    training_batches,
)
from ccsnet.data.opening import DataConfig, augmentation, open_dataset
from ccsnet.datasets import earth
from ccsnet.errors import InputError

YAML = """
classes: [road, car]
images: images/{split}/*.png
labels: labels/{split}/*.png
crop: [32, 32]
"""


def make_data(root, num=5, yaml=YAML):
    (root / "dataset.yaml").write_text(yaml)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(num):
            size = (40 + 30 * (i % 2), 50)
            files = {
                "images": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
                "labels": rng.integers(0, 2, size, dtype=np.uint8),
            }
            for kind, pixels in files.items():
                path = root / kind / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return DataConfig(dataset=str(root), workers=0)


@pytest.fixture
def config(tmp_path):
    return make_data(tmp_path)


def batches(config, **settings):
    spec, root = open_dataset(config)
    return list(training_batches(spec, root, config, **({"seed": 1} | settings)))


def assert_equal(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.names == b.names
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)


def test_batches_are_what_models_take(config):
    (batch,) = batches(config, batch_size=4, steps=1)
    assert (batch.image.dtype, batch.image.shape) == (torch.uint8, (4, 3, 32, 32))
    assert (batch.label.dtype, batch.label.shape) == (torch.int64, (4, 32, 32))


def test_resumed_run_sees_what_it_would_have_seen(config):
    whole = batches(config, batch_size=4, steps=6)
    assert_equal(batches(config, batch_size=4, steps=6, start_step=3), whole[3:])
    assert batches(config, batch_size=4, steps=6, start_step=6) == []


def test_workers_change_nothing(config):
    with_workers = dataclasses.replace(config, workers=2)
    here = batches(config, batch_size=4, steps=5)
    assert_equal(batches(with_workers, batch_size=4, steps=5), here)
    assert_equal(batches(with_workers, batch_size=4, steps=5, start_step=3), here[3:])


def test_every_epoch_shows_every_image_once_and_anew(config):
    run = batches(config, batch_size=1, steps=15)
    names = [batch.names[0] for batch in run]
    assert all(len(set(names[i : i + 5])) == 5 for i in (0, 5, 10))
    assert names[:5] != names[5:10] or names[5:10] != names[10:]
    first, second = (run[names.index("0", start)] for start in (0, 5))
    assert not torch.equal(first.image, second.image)


def test_order_and_augmentation_use_different_streams():
    assert sample_order(3, 4, 5).tolist() == sample_order(3, 4, 5).tolist()
    same = [
        np.array_equal(sample_order(s, 0, 100), np.random.default_rng((s, 0, 0)).permutation(100))
        for s in range(5)
    ]
    assert not any(same)


def test_seeds_differ(config):
    one, two = (batches(config, batch_size=4, steps=1, seed=s)[0] for s in (1, 2))
    assert not torch.equal(one.image, two.image)


def test_processes_share_a_batch(config):
    whole = batches(config, batch_size=4, steps=3)
    parts = [batches(config, batch_size=4, steps=3, rank=r, world_size=2) for r in (0, 1)]
    for step, batch in enumerate(whole):
        assert parts[0][step].names + parts[1][step].names == batch.names
        images = torch.cat([parts[0][step].image, parts[1][step].image])
        assert torch.equal(images, batch.image)


def test_batch_must_divide(config):
    with pytest.raises(InputError, match="3; it must be a multiple of the 2"):
        batches(config, batch_size=3, steps=1, world_size=2)
    with pytest.raises(InputError, match="seed is -1"):
        batches(config, batch_size=1, steps=1, seed=-1)


def test_evaluation_keeps_the_labels_size(config):
    spec, root = open_dataset(config)
    samples = evaluation_samples(spec, root, config, "val")
    assert len(samples) == 5
    found = list(samples)
    assert [s.name for s in found] == ["0", "1", "2", "3", "4"]
    assert found[1].size == (70, 50) == found[1].label.shape
    assert found[1].image.shape == (3, 96, 64)
    assert found[1].label.dtype == torch.int64
    shares = [
        [s.name for s in evaluation_samples(spec, root, config, "val", rank=r, world_size=2)]
        for r in (0, 1)
    ]
    assert sorted(shares[0] + shares[1]) == ["0", "1", "2", "3", "4"]
    workers = dataclasses.replace(config, workers=2)
    again = list(evaluation_samples(spec, root, workers, "val"))
    assert all(torch.equal(a.image, b.image) for a, b in zip(found, again, strict=True))


def test_groups_have_one_size_and_lose_nothing(config):
    spec, root = open_dataset(config)
    samples = evaluation_samples(spec, root, config, "val")
    groups = list(batches_of_equal_size(samples, 2))
    assert sorted(s.name for g in groups for s in g) == ["0", "1", "2", "3", "4"]
    assert all(len({s.image.shape for s in g}) == 1 for g in groups)
    assert sorted(map(len, groups)) == [1, 2, 2]


def test_groups_hold_a_bounded_number(config):
    spec, root = open_dataset(config)
    one = next(iter(evaluation_samples(spec, root, config, "val")))
    given = 0

    def many():
        nonlocal given
        for i in range(100):
            given += 1
            yield one._replace(image=torch.zeros(3, 32, 32 * (i + 1), dtype=torch.uint8))

    taken = 0
    for group in batches_of_equal_size(many(), 2):
        taken += len(group)
        assert given - taken <= 8 * 2
    assert taken == 100


# Bad input


def replace_file(root, kind, name, pixels):
    Image.fromarray(pixels).save(root / kind / "train" / f"{name}.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_label_of_another_size(tmp_path, config, workers):
    replace_file(tmp_path, "labels", 3, np.zeros((9, 9), np.uint8))
    config = dataclasses.replace(config, workers=workers)
    with pytest.raises(InputError, match=r"images/train/3\.png has 70 x 50.*3\.png has 9 x 9") as e:
        batches(config, batch_size=5, steps=1)
    assert "Traceback" not in str(e.value)
    (tmp_path / "labels/val/3.png").write_bytes((tmp_path / "labels/train/3.png").read_bytes())
    spec, root = open_dataset(config)
    with pytest.raises(InputError, match="9 x 9"):
        list(evaluation_samples(spec, root, config, "val"))


def test_check_names_everything_at_once(tmp_path, config):
    replace_file(tmp_path, "labels", 0, np.zeros((9, 9), np.uint8))
    replace_file(tmp_path, "labels", 1, np.full((70, 50), 7, np.uint8))
    (tmp_path / "labels/train/2.png").unlink()
    (tmp_path / "images/train/3.png").write_bytes(b"")
    spec, root = open_dataset(config)
    with pytest.raises(InputError, match="4 problems") as caught:
        check_labels(spec, root, "train")
    text = str(caught.value)
    assert all(part in text for part in ("9 x 9", "holds 7", "2.png has no label", "0 bytes"))
    seen = []
    counts = check_labels(spec, root, "val", limit=3, progress=lambda *a: seen.append(a))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert counts.sum() == 40 * 50 * 2 + 70 * 50 or counts.sum() == 40 * 50 + 2 * 70 * 50


def test_an_incomplete_download_is_noticed(config):
    spec, root = open_dataset(config)
    splits = {"val": dataclasses.replace(spec.splits["val"], count=6)}
    with pytest.warns(UserWarning, match="has 6 images as published, but .* holds 5"):
        check_labels(dataclasses.replace(spec, splits=splits), root, "val")
    splits = {"val": dataclasses.replace(spec.splits["val"], count=4)}
    check_labels(dataclasses.replace(spec, splits=splits), root, "val")  # More is not incomplete.


def test_labels_without_any_class(tmp_path, config):
    for i in range(5):
        replace_file(tmp_path, "labels", i, np.full((40 + 30 * (i % 2), 50), 255, np.uint8))
    spec, root = open_dataset(config)
    with pytest.raises(InputError, match="all are unlabelled"):
        check_labels(spec, root, "train")


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="ade20k"):
        open_dataset(DataConfig(dataset="ade20"))
    with pytest.raises(FileNotFoundError, match="no/such"):
        open_dataset(DataConfig(dataset="no/such"))
    with pytest.raises(InputError, match="DatasetSpec"):
        open_dataset(DataConfig(dataset="math:pi"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"dataset\.yaml"):
        open_dataset(DataConfig(dataset="mine"))


def test_every_way_to_name_a_data_set(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    expected = open_dataset(config)[0]
    for name in (tmp_path.name, f"./{tmp_path.name}", str(tmp_path / "dataset.yaml")):
        assert open_dataset(DataConfig(dataset=name))[0].classes == expected.classes
    spec, root = open_dataset(DataConfig(dataset="ade20k", root=tmp_path))
    assert (spec.name, root) == ("ade20k", tmp_path)
    spec, root = open_dataset(DataConfig(dataset="ccsnet.datasets.cityscapes:SPEC"))
    assert (spec.name, str(root)) == ("cityscapes", "data/cityscapes")


def test_a_data_set_that_can_make_itself_does(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(earth, "SPEC", dataclasses.replace(earth.SPEC, prepare=made.append))
    open_dataset(DataConfig(dataset="earth", root=tmp_path / "earth"))
    assert made == [tmp_path / "earth"]
    open_dataset(DataConfig(dataset="earth", root=tmp_path))
    assert len(made) == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"max_class_share": 0.0}, "max_class_share"),
        ({"workers": -2}, "workers"),
        ({"crop": (0, 4)}, "crop"),
        ({"short_side": 0}, "short_side"),
    ],
)
def test_impossible_settings(changes, text):
    with pytest.raises(InputError, match=text):
        DataConfig(dataset="earth", **changes)


def test_config_overrides_the_data_set(config):
    spec, _ = open_dataset(config)
    assert augmentation(spec, config).crop == (32, 32)
    changed = dataclasses.replace(config, crop=(8, 16), short_side=20, flip=False)
    how = augmentation(spec, changed)
    assert (how.crop, how.short_side, how.long_side, how.flip) == ((8, 16), 20, None, False)


def test_workers_are_bounded():
    assert 0 <= DataConfig(dataset="earth").num_workers <= 4
    assert DataConfig(dataset="earth", workers=9).num_workers == 9


# Other images than RGB


def test_many_bands_and_sixteen_bits(tmp_path):
    import tifffile

    config = make_data(
        tmp_path, yaml=YAML.replace("*.png\nlabels", "*.tif\nlabels") + "channels: 5\n"
    )
    rng = np.random.default_rng(0)
    for path in (tmp_path / "images").rglob("*.png"):
        size = np.asarray(Image.open(path)).shape[:2]
        pixels = rng.normal([100, 200, 300, 4000, 0], [1, 20, 3, 400, 0], (*size, 5)).clip(0)
        pixels = pixels.astype(np.uint16)
        tifffile.imwrite(
            path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig"
        )
    spec, root = open_dataset(config)
    (batch,) = batches(config, batch_size=4, steps=1)
    assert (batch.image.dtype, batch.image.shape) == (torch.int32, (4, 5, 32, 32))
    sample = next(iter(evaluation_samples(spec, root, config, "val")))
    assert (sample.image.dtype, sample.image.shape) == (torch.int32, (5, 64, 64))
    mean, deviation = channel_statistics(spec, root, "train")
    assert np.allclose(mean, [99.5, 199.5, 299.5, 4000, 0], rtol=0.01, atol=0.1)
    assert np.allclose(deviation, [1, 20, 3, 400, 1], rtol=0.1)


def test_mixed_depths_are_refused(tmp_path, config):
    replace_file(tmp_path, "images", 0, np.zeros((40, 50), np.uint16))
    with pytest.raises(InputError, match="8 bits and some 16"):
        batches(config, batch_size=5, steps=1)
