"""Windows: what they cover, how they are blended, and the grid that their sums are kept on."""

import pytest
import torch
from torch import nn

from ccsnet.errors import InputError
from ccsnet.heads._base import Output
from ccsnet.segmenter import create_segmenter
from ccsnet.sliding import sliding_batch, sliding_label, sliding_logits, stride_of
from tests.shapes import tiny_model

PUBLISHED = [(64, 42), (128, 85), (256, 170)]  # Side and stride of the retina sets' windows.


class Pooled(nn.Module):
    """A model without borders: each place's logits are means of the pixels under it."""

    def __init__(self, stride=4):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        pooled = nn.functional.avg_pool2d(image.float(), self.stride)
        return Output(self.weight * torch.cat([pooled, -pooled], dim=1))


class Watched(Pooled):
    """The same, with the windows that it was shown."""

    def __init__(self, stride=4):
        super().__init__(stride)
        self.seen = []

    def forward(self, image):
        self.seen += list(image)
        return super().forward(image)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (200, 130), (20, 300), (7, 9)])
@pytest.mark.parametrize("stride", [64, 48, 42, 33, 32])
def test_a_constant_image_has_no_seams(size, stride):
    image = torch.full((1, *size), 3, dtype=torch.uint8)
    logits, cell = sliding_logits(Pooled(), image, 2, window=64, stride=stride, batch_size=3)
    assert cell == (1 if stride in (42, 33) else 4)
    assert logits.shape == (2, -(-size[0] // cell), -(-size[1] // cell))
    # The last places may reach over the edge, where logits of stride 4 see nothing beside it.
    inside = logits[:, : size[0] // 4 * 4 // cell - 2, : size[1] // 4 * 4 // cell - 2]
    expected = torch.tensor([3.0, -3.0])[:, None, None].expand_as(inside)
    torch.testing.assert_close(inside, expected)


def test_windows_of_a_local_model_equal_the_whole():
    image = torch.randint(0, 256, (3, 200, 132), dtype=torch.uint8)
    model = Pooled()
    whole = model(image[None]).logits[0].detach()
    logits, cell = sliding_logits(model, image, 6, window=64, stride=48)
    assert cell == 4
    torch.testing.assert_close(logits, whole)


@pytest.mark.parametrize(("window", "stride"), PUBLISHED)
@pytest.mark.parametrize("size", [(584, 565), (300, 40), (31, 47)])
def test_logits_of_single_pixels_keep_their_place(window, stride, size):
    """Any stride, any size: a model that sees single pixels labels each by itself."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 2, (1, *size), dtype=torch.uint8, generator=generator)
    logits, cell = sliding_logits(Pooled(stride=1), image, 2, window=window, stride=stride)
    assert cell == 1
    torch.testing.assert_close(logits[0], image[0].float())
    label = sliding_label(Pooled(stride=1), image, 2, size, window=window, stride=stride)
    # Where the pixel is 0, so are both logits, and the first class is taken.
    assert label.shape == size
    assert (label == 0).all()
    signed = sliding_label(
        Pooled(stride=1), image.int() * 2 - 1, 2, size, window=window, stride=stride
    )
    assert torch.equal(signed, 1 - image[0].long())


@pytest.mark.parametrize(("window", "stride"), PUBLISHED)
def test_windows_stand_as_published(window, stride):
    """At multiples of the stride; the last ends with the image."""
    size = (300, 411)
    places = torch.arange(300)[:, None] * 1000 + torch.arange(411)
    model = Watched(stride=1)
    sliding_logits(model, places[None].int(), 2, window=window, stride=stride)
    corners = [divmod(int(crop[0, 0, 0]), 1000) for crop in model.seen]
    lasts = [divmod(int(crop[0, -1, -1]), 1000) for crop in model.seen]
    num = [-(-max(0, side - window) // stride) + 1 for side in size]
    assert len(set(corners)) == len(corners) == num[0] * num[1]
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert starts == [*(i * stride for i in range(num[axis] - 1)), size[axis] - window]
    assert max(lasts) == (299, 410)


def test_one_window_equals_the_forward_pass():
    torch.manual_seed(0)
    model = create_segmenter(tiny_model(), num_classes=3).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        whole = model(image[None]).logits[0]
    torch.testing.assert_close(sliding_logits(model, image, 3, window=64, stride=48)[0], whole)
    # A smaller image is seen with nothing beside it.
    small = image[:, :40, :52]
    padded = torch.zeros_like(image)
    padded[:, :40, :52] = small
    with torch.no_grad():
        expected = model(padded[None]).logits[0, :, :10, :13]
    torch.testing.assert_close(sliding_logits(model, small, 3, window=64, stride=48)[0], expected)


def test_coarser_logits_are_brought_to_stride_4():
    image = torch.full((1, 100, 80), 7, dtype=torch.uint8)
    logits, cell = sliding_logits(Pooled(stride=16), image, 2, window=64, stride=48)
    assert cell == 4
    assert logits.shape == (2, 25, 20)
    assert (logits[0, :20] > 6.9).all()


@pytest.mark.parametrize("head", ["fcn", "segformer"])
def test_heads_of_other_strides(head):
    torch.manual_seed(0)
    model = create_segmenter(tiny_model(head), num_classes=3).eval()
    image = torch.randint(0, 256, (3, 90, 131), dtype=torch.uint8)
    label = sliding_label(model, image, 3, (90, 131), window=64, stride=42)
    assert label.shape == (90, 131)
    assert label.max() < 3


@pytest.mark.parametrize("stride", [48, 42, 33])
def test_labels_at_another_size_than_the_image(stride):
    """An edge in the image is at the same share of the width of any map."""
    image = torch.zeros(1, 75, 101, dtype=torch.int32)
    image[..., :90] = 1
    image[..., 90:] = -1
    for size in ((75, 101), (150, 202), (40, 60)):
        label = sliding_label(Pooled(), image, 2, size, window=64, stride=stride)
        assert label.shape == size
        edge = round(90 / 101 * size[1])
        near = max(1, round(size[1] / 101))
        assert (label[:, : edge - near] == 0).all()
        assert (label[:, edge + near :] == 1).all()


def test_windows_are_told_and_batched():
    image = torch.zeros(1, 160, 160, dtype=torch.uint8)
    told = []
    sliding_logits(
        Pooled(), image, 2, window=64, stride=64, batch_size=4, progress=lambda *a: told.append(a)
    )
    assert told == [(4, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize("stride", [64, 48, 33])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_images_of_one_size_share_their_batches(stride, batch_size):
    images = torch.randint(0, 256, (3, 2, 100, 75), dtype=torch.uint8)
    told = []
    found, cell = sliding_batch(
        Pooled(),
        images,
        4,
        window=64,
        stride=stride,
        batch_size=batch_size,
        progress=lambda *now: told.append(now),
    )
    for image, logits in zip(images, found, strict=True):
        alone, same_cell = sliding_logits(Pooled(), image, 4, window=64, stride=stride)
        assert cell == same_cell
        torch.testing.assert_close(logits, alone)
    assert len(told) == -(-told[-1][1] // batch_size)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_large_sums_are_kept_by_the_processor(monkeypatch, limit):
    """Where they are kept changes nothing; on a GPU it decides what fits."""
    monkeypatch.setattr("ccsnet.sliding.DEVICE_BYTES", limit)
    image = torch.randint(0, 256, (3, 200, 132), dtype=torch.uint8)
    logits, _ = sliding_logits(Pooled(), image, 6, window=64, stride=48)
    assert logits.device.type == "cpu"
    torch.testing.assert_close(logits, Pooled()(image[None]).logits[0].detach())


def test_strides_of_overlaps():
    """Always multiples of 4, so that sums stay at stride 4."""
    assert [stride_of(512, overlap) for overlap in (0.0, 0.25, 0.5)] == [512, 384, 256]
    assert stride_of(64, 0.3) == 44
    assert stride_of(32, 0.75) == 8


@pytest.mark.parametrize(
    ("window", "stride", "text"),
    [
        (100, 50, "window is 100; it must be a multiple of 32"),
        (0, 1, "window is 0"),
        (64, 0, "stride of the windows is 0; it must be from 1 to their side, 64"),
        (64, 65, "stride of the windows is 65"),
    ],
)
def test_impossible_windows(window, stride, text):
    image = torch.zeros(1, 160, 160, dtype=torch.uint8)
    with pytest.raises(InputError, match=text):
        sliding_logits(Pooled(), image, 2, window=window, stride=stride)
