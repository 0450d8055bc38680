import ast
import dataclasses
import json
import typing
from pathlib import Path

import pytest

import ccsnet
from ccsnet.config import RunConfig, TrainConfig, from_json, to_json
from ccsnet.data.opening import DataConfig
from ccsnet.errors import InputError
from ccsnet.heads._base import CCSVariant, HeadConfig
from ccsnet.recipes import RECIPES, recipe

PACKAGE = Path(ccsnet.__file__).parent

# Where each setting is read; `test_every_setting_is_read` holds the list against the code.
READ_BY = {
    "data.dataset": "data/opening.py",
    "data.root": "data/opening.py",
    "data.crop": "data/opening.py",
    "data.short_side": "data/opening.py",
    "data.long_side": "data/opening.py",
    "data.scale": "data/transforms.py",
    "data.max_class_share": "data/transforms.py",
    "data.rare_crop": "data/transforms.py",
    "data.flip": "data/transforms.py",
    "data.photometric": "data/transforms.py",
    "data.train_split": "train.py",
    "data.val_split": "train.py",
    "data.workers": "data/opening.py",
    "data.repeat_threshold": "data/loading.py",
    "model.backbone": "segmenter.py",
    "model.backbone_weights": "segmenter.py",
    "model.output_stride": "segmenter.py",
    "model.frozen_stages": "segmenter.py",
    "model.head": "segmenter.py",
    "model.head_config.dim": "heads/ccs.py",
    "model.head_config.top_k": "heads/ccs.py",
    "model.head_config.coarse_dim": "heads/ccs.py",
    "model.head_config.dropout": "heads/ccs.py",
    "model.head_config.variant.projections": "heads/_ccs_variant.py",
    "model.head_config.variant.centres": "heads/_ccs_variant.py",
    "model.head_config.variant.attending": "heads/_ccs_variant.py",
    "model.head_config.variant.coarse_gradient": "heads/_ccs_variant.py",
    "model.head_config.variant.coarse_bias": "heads/_ccs_variant.py",
    "model.head_config.variant.attention_heads": "heads/_ccs_variant.py",
    "model.head_config.variant.centre_temperature": "heads/_ccs_variant.py",
    "model.head_config.variant.centres_per_class": "heads/_ccs_variant.py",
    "model.head_config.variant.attention_rounds": "heads/_ccs_variant.py",
    "model.head_config.variant.centre_loss_weight": "assemble.py",
    "model.drop_path": "segmenter.py",
    "model.mean": "segmenter.py",
    "model.std": "segmenter.py",
    "optim.optimizer": "optim.py",
    "optim.lr": "optim.py",
    "optim.head_lr_multiplier": "optim.py",
    "optim.weight_decay": "optim.py",
    "optim.betas": "optim.py",
    "optim.layer_decay": "optim.py",
    "optim.layer_decay_by": "optim.py",
    "optim.layer_decay_layers": "optim.py",
    "optim.warmup_steps": "optim.py",
    "optim.power": "optim.py",
    "optim.min_lr": "optim.py",
    "optim.clip_norm": "train.py",
    "train.steps": "train.py",
    "train.batch_size": "train.py",
    "train.accumulate": "train.py",
    "train.validate_every": "config.py",
    "train.validate_batch_size": "train.py",
    "train.seed": "train.py",
    "train.precision": "preflight.py",
    "train.channels_last": "preflight.py",
    "train.grad_checkpointing": "assemble.py",
    "train.compile": "assemble.py",
    "train.class_weights": "assemble.py",
    "train.coarse_weight": "assemble.py",
    "train.patience": "train.py",
    "train.save_every": "train.py",
    "train.keep_last": "keeping.py",
    "train.keep_best": "keeping.py",
    "train.ema": "train.py",
    "train.batch_norm": "assemble.py",
    "train.loss": "assemble.py",
    "train.coarse_loss": "assemble.py",
    "train.cpu": "train.py",
    "train.shard": "train.py",
    "train.timeout": "train.py",
    "train.trackers": "train.py",
    "optim.schedule": "optim.py",
}


def leaves(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        name = prefix + field.name
        found += leaves(kind, f"{name}.") if dataclasses.is_dataclass(kind) else [name]
    return found


def attributes_read(path: Path) -> set[str]:
    """Names read as `something.name`, but for those that `__post_init__` only checks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in ("__post_init__", "_sizes")
    ]
    only_checked = {id(inner) for check in checks for inner in ast.walk(check)}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and id(node) not in only_checked
    }


def test_every_setting_is_read():
    assert set(READ_BY) == set(leaves(RunConfig))
    reads = {path: attributes_read(PACKAGE / path) for path in set(READ_BY.values())}
    unread = [name for name, path in READ_BY.items() if name.rpartition(".")[2] not in reads[path]]
    assert unread == []


def test_a_whole_run_has_few_settings():
    # What published recipes differ in must be one of them; what only developers turn must not.
    names = leaves(RunConfig)
    research = [name for name in names if name.startswith("model.head_config.variant.")]
    assert len(names) - len(research) <= 64
    # Departures from the paper, one for each row of docs/variants.md.
    assert len(research) <= 10


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name):
    config = recipe(name)
    assert from_json(RunConfig, to_json(config)) == config
    changed = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=Path("some/where"), crop=(64, 96)),
        model=dataclasses.replace(
            config.model,
            mean=(1.0, 2.0, 3.0, 4.0),
            std=(1.0,) * 4,
            head_config=HeadConfig(variant=CCSVariant(attending=(4, 16), coarse_bias="fixed")),
        ),
        train=dataclasses.replace(config.train, channels_last=False, validate_every=3),
    )
    again = from_json(RunConfig, to_json(changed))
    assert again == changed
    assert isinstance(again.data.root, Path)
    assert isinstance(again.data.crop, tuple)
    assert isinstance(again.model.head_config.variant.attending, tuple)


def test_settings_from_before_the_variants_are_the_paper_s():
    values = json.loads(to_json(recipe("own")))
    del values["model"]["head_config"]["variant"]
    assert from_json(RunConfig, json.dumps(values)) == recipe("own")


def test_a_variant_that_cannot_be():
    text = to_json(recipe("own")).replace('"centres": "c4"', '"centres": "own"')
    with pytest.raises(InputError, match=r"config\.json: centres is .own. .* Set projections"):
        from_json(RunConfig, text, "config.json")


def test_unknown_setting():
    text = to_json(recipe("own")).replace('"head_lr_multiplier"', '"head_lr_multiplyer"')
    with pytest.raises(InputError, match="Perhaps you meant head_lr_multiplier"):
        from_json(RunConfig, text)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data": 3}', "{}", '{"data": {"dataset": []'])
def test_text_that_is_no_configuration(text):
    with pytest.raises(InputError, match=r"runs/x/config\.json cannot be read"):
        from_json(RunConfig, text, "runs/x/config.json")


def test_unknown_recipe():
    with pytest.raises(InputError, match="Perhaps you meant earth"):
        recipe("earht")


@pytest.mark.parametrize(
    "name",
    [
        *("steps", "batch_size", "accumulate", "validate_batch_size", "validate_every"),
        *("patience", "save_every", "keep_last", "keep_best"),
    ],
)
def test_numbers_below_one(name):
    with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
        TrainConfig(**{name: 0})


def test_batch_that_does_not_divide():
    with pytest.raises(InputError, match=r"batch_size is 16 .* multiple of 3"):
        TrainConfig(batch_size=16, accumulate=3)


@pytest.mark.parametrize("ema", [0.0, 1.0, -0.5, 9.0])
def test_an_average_that_is_none(ema):
    with pytest.raises(InputError, match=r"ema is .* above 0 and below 1"):
        TrainConfig(ema=ema)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan"), 1e15])
def test_a_time_to_answer_that_is_none(timeout):
    with pytest.raises(InputError, match=r"timeout is .* seconds; it must be above 0"):
        TrainConfig(timeout=timeout)


def test_validation_interval():
    assert TrainConfig(steps=4000).validation_interval == 400
    assert TrainConfig(steps=3).validation_interval == 1
    assert TrainConfig(steps=3, validate_every=2).validation_interval == 2


def test_parts_have_defaults():
    config = RunConfig(data=DataConfig(dataset="ade20k"))
    assert (config.train.steps, config.train.batch_size) == (160_000, 16)
    assert (config.model.head, config.model.head_config.top_k) == ("ccs", 20)
    assert (config.optim.lr, config.optim.head_lr_multiplier) == (6e-5, 10.0)
