"""Two models on the same images: every count and share against loops over pixels."""

import math

import numpy as np
import pytest
import torch

from ccsnet import compare_page
from ccsnet.compare import ClassRow, Comparison, choosing_head, compare
from ccsnet.compare_causes import ALL, CAUSES, LOST, CauseCounts, Choice, cause_masks
from ccsnet.counts import ConfusionMatrix
from ccsnet.data.loading import Sample
from ccsnet.inference import Pipeline
from ccsnet.predict_config import PredictConfig
from ccsnet.segmenter import create_segmenter
from tests.shapes import IGNORED, tiny_model
from tests.test_compare_causes import blocks, counted

# Classes and images


def comparison_of(parts, num=4):
    """What `compare` would count of these predictions."""
    causes = CauseCounts(num, IGNORED)
    confusions, taken = np.zeros((2, num, num), int), np.zeros((num, num), int)
    per_image = []
    for label, run, baseline, masks in parts:
        causes.update(label, run, baseline, masks)
        alone = []
        for i, prediction in enumerate((run, baseline)):
            one = ConfusionMatrix(num, IGNORED)
            one.update(torch.from_numpy(label), torch.from_numpy(prediction))
            confusions[i] += one.matrix()
            alone.append(one.sums())
        per_image.append(np.stack(alone))
        for true, ours, theirs in zip(label.flat, run.flat, baseline.flat, strict=True):
            if true != IGNORED and theirs == true != ours:
                taken[true, ours] += 1
    return Comparison(
        classes=tuple("abcd"[:num]),
        images=tuple(f"image {i}" for i in range(len(parts))),
        confusions=confusions,
        per_image=np.stack(per_image),
        taken=taken,
        causes=causes,
    )


def miou_of(parts, chosen):
    """The mean IoU where of each image the chosen prediction is taken."""
    ious = []
    for c in range(4):
        both = either = 0
        for (label, *predictions, _), which in zip(parts, chosen, strict=True):
            valid, found = label != IGNORED, predictions[which] == c
            both += (valid & found & (label == c)).sum()
            either += (valid & (found | (label == c))).sum()
        if either:
            ious.append(both / either)
    return np.mean(ious)


def test_what_an_image_costs():
    _, parts = counted(np.random.default_rng(3), images=4)
    parts[1] = (parts[1][0], parts[1][1], parts[1][1], parts[1][3])  # Predicted alike.
    comparison = comparison_of(parts)
    rows = comparison.image_rows()
    assert [row.cost for row in rows] == sorted((row.cost for row in rows), reverse=True)
    ours = miou_of(parts, [0] * 4)
    for row in rows:
        i = comparison.images.index(row.name)
        swapped = miou_of(parts, [int(i == j) for j in range(4)])
        assert row.cost == pytest.approx(swapped - ours)
        label, run, baseline, _ = parts[i]
        valid = label != IGNORED
        lost = (run != label) & (baseline == label)
        assert row.lost == pytest.approx(lost[valid].mean())
        assert row.run_accuracy == pytest.approx((run == label)[valid].mean())
        assert row.run_miou == pytest.approx(miou_of(parts[i : i + 1], [0]))
        assert row.baseline_miou == pytest.approx(miou_of(parts[i : i + 1], [1]))
    assert next(row.cost for row in rows if row.name == "image 1") == 0


def test_classes_and_what_their_pixels_were_taken_for():
    _, parts = counted(np.random.default_rng(4), images=5)
    comparison = comparison_of(parts)
    run, baseline = comparison.metrics()
    rows = comparison.class_rows()
    assert [row.difference for row in rows] == sorted(row.difference for row in rows)
    for row in rows:
        c = comparison.classes.index(row.name)
        assert row.run == pytest.approx(run.iou[c])
        assert row.baseline == pytest.approx(baseline.iou[c])
        assert row.difference == pytest.approx(row.run - row.baseline)
        assert row.low <= row.difference <= row.high
        given, claimed, gained = dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 0), 0
        for label, ours, theirs, _ in parts:
            for t, o, b in zip(label.flat, ours.flat, theirs.flat, strict=True):
                given["abcd"[o]] += t == c and b == t != o
                if t != IGNORED:
                    claimed["abcd"[t]] += o == c and b == t != o
                gained += t == c and o == t != b
        assert row.given_to == {name: n for name, n in given.items() if n}
        assert list(row.given_to.values()) == sorted(row.given_to.values(), reverse=True)
        assert row.claimed_from == {name: n for name, n in claimed.items() if n}
        assert (row.lost, row.gained) == (sum(given.values()), gained)


def test_intervals_are_of_paired_draws():
    _, parts = counted(np.random.default_rng(5), images=6)
    comparison = comparison_of(parts)
    found = comparison.overall()["miou"]
    drawn = np.random.default_rng(0).integers(6, size=(1000, 6))
    differences = []
    for images in drawn:
        again = [parts[i] for i in images]
        differences.append(miou_of(again, [0] * 6) - miou_of(again, [1] * 6))
    low, high = np.percentile(differences, [2.5, 97.5])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.difference == pytest.approx(found.run - found.baseline)
    # Draws that are not paired would say less.
    run, baseline = comparison.metrics()
    apart = sum(float(m.intervals["miou"].high - m.intervals["miou"].low) for m in (run, baseline))
    assert found.high - found.low < apart


def test_a_class_that_is_nowhere_is_last_and_an_image_without_labels_is_left_out():
    label = np.array([[0, 1, 1]])
    empty = np.full((1, 3), IGNORED)
    run, baseline = np.array([[0, 1, 0]]), np.array([[0, 1, 1]])
    mask = {"near_border": np.ones((1, 3), bool)}
    parts = [(label, run, baseline, mask), (empty, run, baseline, mask)]
    comparison = comparison_of(parts)
    rows = comparison.class_rows()
    assert [row.name for row in rows] == ["a", "b", "c", "d"]
    assert (rows[0].difference, rows[1].difference) == (-0.5, -0.5)
    assert math.isnan(rows[3].difference)
    assert [row.name for row in comparison.image_rows()] == ["image 0"]


# The whole, on models


@pytest.fixture(scope="module")
def tiny():
    """Pipelines of two heads, a few images of two sizes, and the data set."""
    torch.manual_seed(0)
    models = [create_segmenter(tiny_model(head), num_classes=3).eval() for head in ("ccs", "fcn")]
    for model in models:  # Else all logits are nearly equal.
        for parameter in model.head.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            torch.from_numpy(rng.integers(0, 256, (3, *seen), dtype=np.uint8)),
            torch.from_numpy(blocks(rng, size, 3, 9)),
            f"image {i}",
            size,
        )
        for i, (seen, size) in enumerate([((64, 96), (50, 77)), ((96, 64), (96, 64))] * 2)
    ]
    return models, samples


def pipeline_of(model, **settings):
    config = PredictConfig(batch_size=2)
    return Pipeline(models=(model,), num_classes=3, config=config, **settings)


def spec_of(shapes):
    from ccsnet.datasets._folder import read_spec

    return read_spec(shapes)[0]


def test_models_are_compared_as_they_are_evaluated(tiny, shapes):
    from ccsnet.evaluate import evaluate

    (run, baseline), samples = tiny
    told = []
    found = compare(pipeline_of(run), pipeline_of(baseline), samples, spec_of(shapes), told.append)
    assert sum(told) == len(found.images) == 4
    for metrics, model in zip(found.metrics(), (run, baseline), strict=True):
        measured = evaluate(pipeline_of(model), samples, metrics.classes).metrics
        np.testing.assert_array_equal(metrics.confusion, measured.confusion)
        np.testing.assert_array_equal(metrics.per_image.sum(0)[0], metrics.confusion.diagonal())
    assert found.causes.names == tuple(CAUSES)
    assert sum(found.taken.sum(1)) == found.causes.by_class[0, LOST].sum() > 0


def test_the_choice_is_each_images_own(tiny, shapes):
    """Whatever stands beside an image in its batch, its cells are those of its coarse logits."""
    (run, baseline), samples = tiny
    spec = spec_of(shapes)
    together = compare(pipeline_of(run), pipeline_of(baseline), samples, spec)
    by_name = dict(zip(together.images, together.causes.per_image, strict=True))
    for sample in samples:
        with torch.no_grad():
            output = run(sample.image[None])
        seen = (sample.image.shape[1], sample.image.shape[2])
        finest = (output.logits.shape[2], output.logits.shape[3])
        masks = cause_masks(sample.label, 3, seen, Choice(output.coarse[0], finest, run.head.top_k))
        valid = (sample.label != IGNORED).numpy()
        for i, name in enumerate(together.causes.names):
            expected = int((masks[name] & valid).sum())
            assert abs(by_name[sample.name][1 + i, ALL] - expected) <= 2, name  # Near ties.


def test_other_heads_and_windows_have_fewer_causes(tiny, shapes):
    (ccs, fcn), samples = tiny
    spec = spec_of(shapes)
    plain = ("near_border", "segment_below_16", "segment_below_32")
    assert compare(pipeline_of(fcn), pipeline_of(ccs), samples, spec).causes.names == plain
    windows = {"tested_in": (64, 32)}
    assert choosing_head(pipeline_of(ccs)) is ccs.head
    assert choosing_head(pipeline_of(ccs, **windows)) is None
    found = compare(pipeline_of(ccs, **windows), pipeline_of(fcn, **windows), samples, spec)
    assert found.causes.names == plain
    assert not ccs.head._forward_hooks


@pytest.mark.parametrize(
    ("variant", "chooses"),
    [({"attention_rounds": 2}, True), ({"coarse_bias": "fixed"}, True), ({"attending": ()}, False)],
)
def test_variants_choose_by_the_coarse_prediction_that_they_return(tiny, shapes, variant, chooses):
    from dataclasses import replace

    from ccsnet.heads._base import CCSVariant

    config = tiny_model()
    head = replace(config.head_config, variant=CCSVariant(**variant))
    model = create_segmenter(replace(config, head_config=head), num_classes=3).eval()
    (_, fcn), samples = tiny
    found = compare(pipeline_of(model), pipeline_of(fcn), samples[:1], spec_of(shapes))
    assert ("not_relevant" in found.causes.names) == chooses


# Words


def test_what_is_right_and_wrong_has_its_colours():
    label = np.array([[0, 0, 0, 0, IGNORED]])
    run, baseline = np.array([[0, 1, 0, 1, 0]]), np.array([[0, 0, 1, 1, 1]])
    painted = compare_page.difference_map(label, run, baseline)
    assert [tuple(colour) for colour in painted[0].tolist()] == list(compare_page.MARKS)


def test_differences_in_words():
    def row(difference, low, high):
        rest = {"share": 0.1, "run": 0.5, "baseline": 0.5, "lost": 0, "gained": 0}
        return ClassRow(
            name="a",
            difference=difference,
            low=low,
            high=high,
            given_to={},
            claimed_from={},
            **rest,
        )

    assert compare_page.verdict(row(-0.1, -0.2, -0.01)) == "loses"
    assert compare_page.verdict(row(-0.1, -0.2, 0.01)) == "may be chance"
    assert compare_page.verdict(row(0.1, 0.05, 0.2)) == "gains"
    assert compare_page.verdict(row(math.nan, math.nan, math.nan)) == ""
    assert compare_page.points(-0.0123) == "-1.2"
    assert compare_page.points(math.nan) == "-"
    assert compare_page.fine_points(-0.0000123) == "-0.0012"
    assert compare_page.within(-0.01, 0.02) == "-1.0 to +2.0"
    assert compare_page.shares_text({"sky": 3, "car": 1}) == "sky 75%, car 25%"
    assert compare_page.shares_text({"sky": 995, "car": 5}) == "sky 100%"
    assert compare_page.shares_text({}) == "-"
