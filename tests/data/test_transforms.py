import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsnet.data import transforms
from ccsnet.data.transforms import Augmentation, aligned_size, augment, resize_aligned, scaled_size

HOW = Augmentation(
    crop=(48, 64), short_side=60, long_side=200, ignore_index=255, max_class_share=1.0
)
sides = st.integers(1, 150)
seeds = st.integers(0, 2**32)


def blobs(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A label map of regions large enough to survive scaling, some of it unlabelled."""
    coarse = rng.choice([0, 1, 2, 3, 255], (-(-height // 16), -(-width // 16)))
    return np.kron(coarse, np.ones((16, 16), int))[:height, :width].astype(np.uint8)


def painted(label: np.ndarray) -> np.ndarray:
    """An image that shows the label: padding (0) cannot be taken for a class."""
    shades = np.zeros(256, np.uint8)
    shades[[0, 1, 2, 3, 255]] = [50, 100, 150, 200, 250]
    return np.repeat(shades[label][..., None], 3, axis=2)


@settings(deadline=None, max_examples=60)
@given(height=sides, width=sides, seed=seeds, channels=st.sampled_from([1, 3, 5]))
def test_any_image_becomes_a_sample_of_the_crops_size(height, width, seed, channels):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    label = blobs(height, width, rng)
    made, truth = augment(image, label, rng, HOW)
    assert made.shape == (48, 64, channels)
    assert truth.shape == (48, 64)
    assert made.dtype == truth.dtype == np.uint8
    assert set(np.unique(truth)) <= {*np.unique(label), 255}


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(40, 160),
    width=st.integers(40, 160),
    seed=seeds,
    share=st.sampled_from([0.5, 1.0]),
)
def test_label_stays_on_its_pixels(height, width, seed, share):
    rng = np.random.default_rng(seed)
    label = blobs(height, width, rng)
    how = dataclasses.replace(HOW, photometric=False, max_class_share=share)
    made, truth = augment(painted(label), label, rng, how)
    expected = painted(truth)
    shown = made[..., 0] > 0  # The rest is padding.
    # Bilinear blends the neighbours of an edge; all other pixels must agree exactly.
    kernel = np.ones((7, 7), np.uint8)
    flat = cv2.morphologyEx(made[..., 0], cv2.MORPH_GRADIENT, kernel) == 0
    assert (made[..., 0] == expected[..., 0])[flat & shown].all()
    assert (truth[~shown] == 255).all()


def test_label_is_not_shifted_by_scaling():
    """The mean place of an edge, seen through the image and through the label, is the same."""
    label = (np.arange(60) >= 29).astype(np.uint8)[None].repeat(40, 0)
    for size in ((90, 131), (25, 37), (83, 120)):
        image = transforms.resize_image((label * 200)[..., None], size)
        truth = transforms.resize_label(label, size)
        edge_of_image = (image[0, :, 0] < 100).sum()
        assert abs(int(edge_of_image) - int((truth[0] == 0).sum())) <= 1
        assert abs((truth == 0).mean() - 29 / 60) < 0.5 / size[1] + 1e-9


def test_crop_before_resize_shows_what_resize_before_crop_shows():
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (120, 180, 3), dtype=np.uint8), (0, 0), 6)
    smooth = cv2.normalize(smooth, np.empty(0), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    size, crop = (180, 270), (60, 90)
    whole = cv2.resize(smooth, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    label = np.zeros((120, 180), np.uint8)
    how = dataclasses.replace(HOW, crop=crop)
    for seed in range(5):
        rows, columns = transforms.choose_crop(label, size, np.random.default_rng(seed), how)
        made = transforms.resize_image(smooth[rows, columns], crop)
        top, left = round(rows.start * 1.5), round(columns.start * 1.5)
        other = whole[top : top + crop[0], left : left + crop[1]]
        difference = np.abs(made.astype(int) - other.astype(int))[2:-2, 2:-2]
        assert difference.mean() < 6


def test_crops_of_one_class_are_drawn_again():
    label = np.zeros((64, 640), np.uint8)
    label[:, 320:] = 1
    how = dataclasses.replace(HOW, crop=(64, 64), max_class_share=0.75)

    def mixed(share: float) -> float:
        found = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            chosen = dataclasses.replace(how, max_class_share=share)
            rows, columns = transforms.choose_crop(label, label.shape, rng, chosen)
            found += len(np.unique(label[rows, columns])) > 1
        return found / 200

    assert mixed(1.0) < 0.2
    # One draw in about 18 is mixed enough, so ten draws find one in about 44 % of the cases.
    assert 0.3 < mixed(0.75) < 0.65


def test_unlabelled_pixels_count_as_no_class():
    label = np.full((64, 64), 255, np.uint8)
    assert transforms._largest_share(label, 255) == 1
    label[:32, :2] = 3
    label[32:, :2] = 4
    assert transforms._largest_share(label, 255) == 0.5


@given(height=sides, width=sides, short=st.none() | st.integers(8, 300), seed=seeds)
@settings(deadline=None)
def test_aligned_sizes(height, width, short, seed):
    size = aligned_size((height, width), short, 400)
    plain = scaled_size((height, width), short, 400)
    for side, before in zip(size, plain, strict=True):
        assert side % 32 == 0
        assert before <= side < before + 32
    assert max(plain) <= 400


def test_aligned_resize_of_known_sizes():
    assert aligned_size((683, 512), 512, 2048) == (704, 512)
    assert aligned_size((1024, 2048), 1024, 2048) == (1024, 2048)
    assert aligned_size((360, 480), None, None) == (384, 480)
    image = np.zeros((360, 480, 7), np.uint16)
    assert resize_aligned(image, None, None).shape == (384, 480, 7)


def test_flip_turns_both():
    label = np.zeros((48, 64), np.uint8)
    label[:, :10] = 3
    how = dataclasses.replace(HOW, short_side=48, scale=(1.0, 1.0), photometric=False)
    sides_seen = set()
    for seed in range(20):
        made, truth = augment(painted(label), label, np.random.default_rng(seed), how)
        assert (made == painted(truth)).all()
        sides_seen.add(int(truth[0, 0]))
    assert sides_seen == {0, 3}


@pytest.mark.parametrize("saturation", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("degrees", [-18, 0, 18])
def test_colour_matrix_keeps_grey(saturation, degrees):
    matrix = transforms.colour_matrix(saturation, math.radians(degrees))
    assert np.allclose(matrix @ np.ones(3), 1, atol=1e-6)


def test_hue_turns_red_towards_yellow_and_fully_around_to_green():
    red = np.array([1.0, 0, 0])
    green = transforms.colour_matrix(1.0, math.radians(120)) @ red
    assert np.allclose(green, [0, 1, 0], atol=1e-6)
    orange = transforms.colour_matrix(1.0, math.radians(18)) @ red
    assert orange[1] > 0.1 > orange[2]


def test_photometric_changes_only_the_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    results = [transforms.recolour(image, np.random.default_rng(s)) for s in range(40)]
    same = sum(np.array_equal(r, image) for r in results)
    assert 0 <= same < 10  # All four parts are off once in 16.
    assert all(r.dtype == np.uint8 for r in results)


def test_photometric_of_sixteen_bits_stays_in_proportion():
    image = np.full((8, 8, 4), 1000, np.uint16)
    results = [transforms.recolour(image, np.random.default_rng(s)) for s in range(40)]
    values = np.array([r[0, 0, 0] for r in results])
    assert values.min() >= 1000 * (1 - 32 / 255) * 0.5 - 1
    assert values.max() <= 1000 * (1 + 32 / 255) * 1.5 + 1
    assert len(set(values)) > 5


def test_same_generator_same_sample():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    label = blobs(80, 90, rng)
    one, two = (augment(image, label, np.random.default_rng((1, 2, 3)), HOW) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])


def literal_sample(image, label, rng, how):
    """The pipeline step by step, as it is told: the whole image is resized, and then cropped."""
    factor = rng.uniform(*how.scale)
    size = scaled_size(image.shape[:2], how.short_side * factor, how.long_side * factor)
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).astype(float)
    label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = how.crop
    for _ in range(10):
        top = rng.integers(max(0, size[0] - height) + 1)
        left = rng.integers(max(0, size[1] - width) + 1)
        part = label[top : top + height, left : left + width]
        values, counts = np.unique(part[part != how.ignore_index], return_counts=True)
        if len(values) and counts.max() / counts.sum() <= how.max_class_share:
            break
    image = image[top : top + height, left : left + width]
    if rng.random() < 0.5:
        image, part = image[:, ::-1], part[:, ::-1]
    if rng.random() < 0.5:
        image = image + rng.uniform(-32, 32)
    if rng.random() < 0.5:
        image = image * rng.uniform(0.5, 1.5)
    hsv = cv2.cvtColor(image.clip(0, 255).astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    if rng.random() < 0.5:
        hsv[..., 1] = (hsv[..., 1] * rng.uniform(0.5, 1.5)).clip(0, 1)
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(-18, 18)) % 360
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    padded = np.zeros((*how.crop, 3))
    padded[: image.shape[0], : image.shape[1]] = image
    truth = np.full(how.crop, how.ignore_index)
    truth[: part.shape[0], : part.shape[1]] = part
    return padded, truth


def test_fast_and_literal_samples_are_distributed_alike():
    """Shares of classes, padding, brightness and contrast of 1500 samples, within 4 errors."""
    rng = np.random.default_rng(0)
    label = np.zeros((64, 85), np.uint8)
    label[:40, 50:], label[48:, :30], label[:8] = 1, 2, 255
    image = np.array([[90, 140, 60], [60, 80, 170], [180, 70, 50]], np.uint8)[label % 253]
    image = (image + rng.normal(0, 10, image.shape)).clip(0, 255).astype(np.uint8)
    how = Augmentation(crop=(64, 64), short_side=64, long_side=256, ignore_index=255)

    def figures(make) -> np.ndarray:
        rows = []
        for number in range(1500):
            pixels, truth = make(image, label, np.random.default_rng((7, number)), how)
            seen = np.asarray(pixels, float)[truth != 255]
            left = (truth[:, : truth.shape[1] // 2] == 1).mean()
            shares = [(truth == value).mean() for value in (0, 1, 2, 255)]
            rows.append([*shares, left, seen.mean() / 255, seen.std() / 255])
        return np.array(rows)

    fast, literal = figures(augment), figures(literal_sample)
    error = np.sqrt((fast.var(0) + literal.var(0)) / len(fast))
    gap = np.abs(fast.mean(0) - literal.mean(0))
    assert (gap < 4 * error + 0.003).all(), (gap, error)
    spread = fast.std(0) / literal.std(0)
    assert ((spread > 0.9) & (spread < 1.1)).all(), spread
