"""The card of a published model: whose weights it started from, and what to cite."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from ccsnet.checkpoint import read_checkpoint
from ccsnet.model_card import BIBTEX, model_card

README = Path(__file__).parents[1] / "README.md"
SECTIONS = ["Use", "Figures", "Classes", "Data", "Limits", "How it was made", "Citation"]


@pytest.fixture
def card(run):
    """The metadata and the page of a model whose backbone began in some way."""

    def made(weights, backbone="resnet18"):
        checkpoint = read_checkpoint(run.out)
        model = dataclasses.replace(
            checkpoint.config.model, backbone=backbone, backbone_weights=weights
        )
        config = dataclasses.replace(checkpoint.config, model=model)
        text = model_card(dataclasses.replace(checkpoint, config=config), "me/shapes")
        _, head, body = text.split("---\n", 2)
        return yaml.safe_load(head), body

    return made


def test_sections(card):
    _, body = card("none")
    assert [line[3:] for line in body.splitlines() if line.startswith("## ")] == SECTIONS


def test_weights_of_the_hub(card):
    head, body = card("pretrained")
    assert head["base_model"] == "timm/resnet18.a1_in1k"
    assert "weights a1\\_in1k of timm; their licence: apache-2.0" in body


def test_licence_of_weights_that_are_not_free(card):
    assert "their licence: cc-by-nc-4.0" in card("pretrained", "vit_base_patch16_224.mae")[1]


def test_no_weights_and_own_weights(card):
    head, body = card("none")
    assert "base_model" not in head
    assert "started from: random weights" in body
    head, body = card("secret/place/weights.pth")
    assert "base_model" not in head
    data = body.partition("## Data")[2].partition("##")[0]
    assert "the author of this model had; their licence: not stated" in data
    assert "secret" not in data


def test_the_paper_is_cited_as_in_the_readme(card):
    assert f"```bibtex\n{BIBTEX}\n```" in card("none")[1]
    assert BIBTEX in README.read_text("utf-8")
