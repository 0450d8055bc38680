"""What lost pixels have in common: masks and shares against loops over pixels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ccsnet.compare_causes import (
    ALL,
    CAUSES,
    FEW_CELLS,
    GAINED,
    LOST,
    NEAR,
    CauseCounts,
    Choice,
    cause_masks,
    cells_under,
)
from ccsnet.heads._classes import window_of

IGNORED = 255


def blocks(rng, size, num_classes, side=5):
    """Labels with segments of several sizes, some pixels ignored."""
    rows, columns = (-(-n // side) for n in size)
    label = rng.integers(0, num_classes, (rows, columns)).repeat(side, 0).repeat(side, 1)
    label = label[: size[0], : size[1]].copy()
    stray = rng.random(size) < 0.02
    label[stray] = rng.integers(0, num_classes, stray.sum())
    label[rng.random(size) < 0.05] = IGNORED
    return label


def segment_sizes(label):
    """Pixels of the connected piece that each pixel is of, corners connecting."""
    sizes = np.zeros(label.shape, int)
    for start in np.ndindex(label.shape):
        if sizes[start] or label[start] == IGNORED:
            continue
        piece, waiting = {start}, [start]
        while waiting:
            r, c = waiting.pop()
            for near in np.ndindex(3, 3):
                other = (r + near[0] - 1, c + near[1] - 1)
                inside = all(0 <= o < n for o, n in zip(other, label.shape, strict=True))
                if inside and other not in piece and label[other] == label[start]:
                    piece.add(other)
                    waiting.append(other)
        for place in piece:
            sizes[place] = len(piece)
    return sizes


# Causes


@pytest.mark.parametrize(
    ("size", "seen", "grid", "finest"),
    [
        ((32, 48), (32, 48), (2, 3), (8, 12)),
        ((31, 45), (64, 96), (4, 6), (16, 24)),
        ((40, 33), (50, 41), (4, 3), (13, 11)),
    ],
)
def test_masks_against_loops(size, seen, grid, finest):
    rng, num, top_k = np.random.default_rng(size[0]), 5, 2
    label = blocks(rng, size, num)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(num, *grid, generator=generator)
    coarse[4] -= 9  # Wins nothing.
    coarse[3] = -9
    coarse[3, 0, 0] = 9  # Wins one cell.
    masks = cause_masks(torch.from_numpy(label), num, seen, Choice(coarse, finest, top_k))
    assert masks.keys() == CAUSES.keys()

    up = F.interpolate(coarse[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    number = torch.arange(grid[0] * grid[1]).view(1, *grid, 1).float()
    cell_of_place = window_of(number, finest)[0, ..., 0].long()
    wins = np.bincount(coarse.argmax(0).flatten().numpy(), minlength=num)
    sizes = segment_sizes(label)
    found = {name: 0 for name in CAUSES}
    for r, c in np.ndindex(label.shape):
        true = label[r, c]
        if true == IGNORED:
            continue
        place = int((r + 0.5) * finest[0] / size[0]), int((c + 0.5) * finest[1] / size[1])
        cell = divmod(int(cell_of_place[place]), grid[1])
        best = sorted(range(num), key=lambda n: -coarse[n, cell[0], cell[1]])[:top_k]
        around = label[max(r - NEAR, 0) : r + NEAR + 1, max(c - NEAR, 0) : c + NEAR + 1]
        seen_area = sizes[r, c] * seen[0] * seen[1] / label.size
        expected = {
            "not_relevant": true not in best,
            "coarse_wrong": int(up[r, c]) != true,
            "coarse_right": int(up[r, c]) == true,
            "in_no_cell": wins[true] == 0,
            "in_few_cells": 0 < wins[true] < FEW_CELLS,
            "near_border": bool((around != true).any()),
            "segment_below_16": seen_area < 16 * 16,
            "segment_below_32": seen_area < 32 * 32,
        }
        assert {name: bool(mask[r, c]) for name, mask in masks.items()} == expected, (r, c)
        for name, holds in expected.items():
            found[name] += holds
    assert all(found.values())


def test_a_large_segment_far_from_borders_has_no_cause():
    label = torch.zeros(64, 64, dtype=torch.long)
    masks = cause_masks(label, 3, (64, 64))
    assert list(masks) == ["near_border", "segment_below_16", "segment_below_32"]
    assert not any(mask.any() for mask in masks.values())


def test_where_all_classes_are_relevant_the_choice_is_no_cause():
    coarse = torch.randn(3, 2, 2)
    masks = cause_masks(torch.zeros(32, 32).long(), 3, (32, 32), Choice(coarse, (8, 8), 3))
    assert masks.keys() == CAUSES.keys() - {"not_relevant"}


def test_the_cells_of_the_paper():
    assert cells_under(64, 16, 4).tolist() == np.arange(4).repeat(16).tolist()


def counted(rng, images=3, num=4):
    """Counts of random predictions, and what they are made of."""
    counts, parts = CauseCounts(num, IGNORED), []
    for _ in range(images):
        label = rng.integers(0, num, (12, 9))
        label[rng.random(label.shape) < 0.1] = IGNORED
        run, baseline = (
            np.where(rng.random(label.shape) < 0.7, label % num, rng.integers(0, num, label.shape))
            for _ in range(2)
        )
        masks = {n: rng.random(label.shape) < 0.3 for n in ("near_border", "coarse_wrong")}
        counts.update(label, run, baseline, masks)
        parts.append((label, run, baseline, masks))
    return counts, parts


def test_shares_against_loops():
    classes = ("a", "b", "c", "d")
    counts, parts = counted(np.random.default_rng(0))
    rows = counts.rows(classes)
    assert [row.name for row in rows] == ["coarse_wrong", "near_border"]
    for row in rows:
        num = np.zeros((2, 3, 4), int)  # All pixels and those with the cause.
        for label, run, baseline, masks in parts:
            for place in np.ndindex(label.shape):
                true = label[place]
                if true == IGNORED:
                    continue
                kinds = [ALL]
                kinds += [LOST] if baseline[place] == true != run[place] else []
                kinds += [GAINED] if run[place] == true != baseline[place] else []
                for kind in kinds:
                    num[0, kind, true] += 1
                    num[1, kind, true] += masks[row.name][place]
        lost, gained, everywhere = num[1].sum(1) / num[0].sum(1)
        assert (row.lost, row.gained, row.everywhere) == pytest.approx((lost, gained, everywhere))
        assert row.lift == pytest.approx(lost / everywhere)
        assert row.versus_gained == pytest.approx(lost / gained)
        assert row.low <= row.lift <= row.high
        assert row.versus_low <= row.versus_gained <= row.versus_high
        for i, name in enumerate(classes):
            of_class = num[1, :, i] / num[0, :, i]
            assert row.by_class[name] == pytest.approx((of_class[LOST], of_class[ALL]))


def test_shares_of_nothing_do_not_exist():
    counts = CauseCounts(2, IGNORED)
    label = np.array([[0, 1], [IGNORED, 0]])
    counts.update(label, label % 2, label % 2, {"near_border": np.zeros((2, 2), bool)})
    (row,) = counts.rows(("a", "b"))
    assert row.everywhere == 0
    assert row.by_class == {}
    for value in (row.lost, row.gained, row.lift, row.low, row.high, row.versus_gained):
        assert math.isnan(value)
