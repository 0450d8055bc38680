"""What models cost, against the models themselves, and widths that make them equal."""

from dataclasses import replace

import pytest

from ccsnet.catalogue import count_macs
from ccsnet.datasets._spec import DatasetSpec, Split
from ccsnet.segmenter import ModelConfig, create_segmenter
from ccsnet.study import Match, with_dim
from ccsnet.study_cost import SIDE, CostCounter, matched
from ccsnet.study_file import read_study
from tests.shapes import BACKBONE, tiny_model

SPEC = DatasetSpec(
    name="four",
    classes=("a", "b", "c", "d"),
    colours=((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)),
    raw_to_class={0: 0, 1: 1, 2: 2, 3: 3},
    splits={"train": Split(images="*.png", labels="*.png")},
    licence="none",
    source="nowhere",
    default_root=".",
)
HEADS = ("ccs", "segformer", "fcn", "smp.UPerNet", "smp.DeepLabV3Plus")


@pytest.mark.parametrize("head", HEADS)
def test_equals_the_model(head):
    config = tiny_model(head)
    found = CostCounter(SPEC).cost(config)
    model = create_segmenter(config, num_classes=4).eval()
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.gmacs == pytest.approx(count_macs(model, SIDE) / 1e9, rel=1e-6)


def test_an_image_of_other_bands():
    config = replace(tiny_model(), mean=(0.0,) * 5, std=(1.0,) * 5)
    model = create_segmenter(config, num_classes=4, in_channels=5)
    found = CostCounter(replace(SPEC, channels=5)).cost(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_backbone_is_built_once(monkeypatch):
    import ccsnet.study_cost as module

    built = []
    create = module.create_backbone
    monkeypatch.setattr(
        module, "create_backbone", lambda *a, **k: built.append(a) or create(*a, **k)
    )
    counter = CostCounter(SPEC)
    for head in ("ccs", "fcn", "segformer"):
        counter.cost(tiny_model(head))
    counter.cost(ModelConfig(backbone=BACKBONE, head="fcn", drop_path=0.0))
    assert len(built) == 1


STUDY = """
data: nowhere
recipe: own
seeds: [0]
settings: {{backbone: {backbone}, backbone-weights: none}}
baseline: ccs
report: test
match: {{by: {by}}}
rows:
  ccs: {{head: ccs, dim: 48}}
  segformer: {{head: segformer}}
  wide: {{head: segformer, dim: 200}}
  fcn: {{head: fcn}}
"""


@pytest.fixture
def study(tmp_path):
    def read(by="gmacs"):
        path = tmp_path / "s.yaml"
        path.write_text(STUDY.format(backbone=BACKBONE, by=by))
        return replace(read_study(path), spec=SPEC)

    return read


@pytest.mark.parametrize("by", ["gmacs", "parameters"])
def test_the_nearest_of_all_widths(study, by):
    before, counter = study(by), CostCounter(SPEC)
    dims = tuple(range(8, 120, 20))
    before = replace(before, match=Match(by=by, to="ccs", dims=dims))
    after = matched(before, counter)

    def size(row):
        return getattr(counter.cost(row.config.model), by)

    goal = size(before.rows["ccs"])
    for name in ("segformer", "fcn"):
        row = before.rows[name]
        best = min(dims, key=lambda dim: abs(size(with_dim(row, dim)) - goal))
        assert after.rows[name].config.model.head_config.dim == best
        assert after.rows[name].words[-2:] == ("--dim", str(best))
    assert after.rows["ccs"] == before.rows["ccs"]
    assert after.rows["wide"] == before.rows["wide"]


def test_nothing_is_matched_unasked(study):
    before = replace(study(), match=None)
    assert matched(before, CostCounter(SPEC)) is before


def test_a_width_replaces_another(study):
    row = with_dim(study().rows["wide"], 16)
    assert row.words.count("--dim") == 1
    assert row.words[-2:] == ("--dim", "16")
    assert row.config.model.head_config.dim == 16
