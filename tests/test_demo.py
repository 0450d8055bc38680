"""The demo's own parts; `.ci/run` runs the whole of it in a few steps."""

import numpy as np
import pytest
from PIL import Image

from ccsnet import demo
from ccsnet.datasets._folder import read_spec
from ccsnet.errors import InputError
from ccsnet.progress import Silent
from ccsnet.recipes import recipe


def colour_set(root, noise: int):
    """Two classes, red and blue, with noise."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 3), ("val", 2)):
        for i in range(number):
            label = rng.integers(0, 2, (20, 30)).astype(np.uint8)
            image = np.where(label[..., None] == 0, (200, 60, 60), (60, 60, 200))
            image = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
            for kind, pixels in (("images", image), ("labels", label)):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (root / "dataset.yaml").write_text(
        "classes: [red, blue]\nimages: images/{split}/*.png\nlabels: labels/{split}/*.png\n"
    )
    return read_spec(root)


def test_baseline_tells_what_colour_tells(tmp_path):
    assert demo.colour_baseline(*colour_set(tmp_path / "a", 5), Silent()).miou > 0.99
    assert 0.4 < demo.colour_baseline(*colour_set(tmp_path / "b", 90), Silent()).miou < 0.9


def test_choice_of_classes_is_real():
    config = recipe("earth")
    assert config.model.head_config.top_k == 3


def test_tiles_are_named_by_where_they_are():
    assert demo._degrees("r00c00") == "90°N to 70°N, 180°W to 160°W"
    assert demo._degrees("r04c09") == "10°N to 10°S, 0° to 20°E"


def test_a_run_on_other_data_is_not_touched(tmp_path, monkeypatch):
    class Saved:
        config = recipe("camvid_lite0")
        step = 1

    (tmp_path / demo.LAST).write_bytes(b"x")
    monkeypatch.setattr(demo, "read_checkpoint", lambda path: Saved)
    with pytest.raises(InputError, match="other data"):
        demo._train(recipe("earth"), tmp_path, Silent())
    assert (tmp_path / demo.LAST).read_bytes() == b"x"
