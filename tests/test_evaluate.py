import numpy as np
import pytest
import torch

from ccsnet.checkpoint import load_model, read_checkpoint
from ccsnet.data.loading import evaluation_samples, open_dataset
from ccsnet.evaluate import evaluate
from ccsnet.metrics import ConfusionMatrix, Metrics
from ccsnet.upsample import upsample_argmax


@pytest.fixture(scope="module")
def trained(run):
    spec, root = open_dataset(run.config.data)

    def samples():
        return evaluation_samples(spec, root, run.config.data, "val")

    return load_model(read_checkpoint(run.out)), spec, samples


def one_by_one(model, samples, spec):
    total = ConfusionMatrix(spec.num_classes, spec.ignore_index)
    with torch.no_grad():
        for sample in samples:
            logits = model.eval()(sample.image[None]).logits
            size = (sample.label.shape[0], sample.label.shape[1])
            total.update(sample.label, upsample_argmax(logits, size)[0])
    return total.matrix()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(trained, batch_size):
    model, spec, samples = trained
    told = []
    found = evaluate(
        model, samples(), spec.classes, batch_size=batch_size, progress=told.append
    ).metrics
    expected = one_by_one(model, samples(), spec)
    assert found.images == sum(told) == 4
    assert found.confusion.sum() == expected.sum()  # Every valid pixel, no ignored one.
    assert np.abs(found.confusion - expected).sum() <= 4  # Rounding may turn a near tie.


def test_the_stored_miou_is_what_is_measured(run, trained):
    model, spec, samples = trained
    found = evaluate(model, samples(), spec.classes)
    assert found.metrics.miou == pytest.approx(read_checkpoint(run.out).miou, abs=1e-3)
    assert found.per_image == []


def test_images_are_ranked_worst_first(trained):
    model, spec, samples = trained
    ranking = evaluate(model, samples(), spec.classes, per_image=True).per_image
    assert sorted(name for name, _ in ranking) == ["0", "1", "2", "3"]
    assert [miou for _, miou in ranking] == sorted(miou for _, miou in ranking)


def test_an_image_without_labels_is_not_ranked(trained):
    model, spec, samples = trained
    blank = [s._replace(label=torch.full_like(s.label, 255)) for s in samples()]
    found = evaluate(model, blank, spec.classes, per_image=True)
    assert found.per_image == []
    assert np.isnan(found.metrics.miou)


def test_the_model_is_put_back(trained):
    model, spec, samples = trained
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        evaluate(model, samples(), spec.classes)
        assert model.training is training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_processes_add_up(trained):
    """What each process counts is summed; here both count the same."""
    model, spec, samples = trained
    alone = evaluate(model, samples(), spec.classes).metrics
    both = evaluate(model, samples(), spec.classes, reduce=lambda counts: 2 * counts).metrics
    assert both.images == 2 * alone.images
    assert (both.confusion == 2 * alone.confusion).all()
    nothing = evaluate(model, [], spec.classes, reduce=lambda counts: counts).metrics
    assert isinstance(nothing, Metrics)
    assert nothing.confusion.sum() == nothing.images == 0
