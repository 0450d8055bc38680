import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ccsnet.averaging import WeightAverage
from ccsnet.backbones.timm import create_backbone
from ccsnet.batch_norm import synchronise
from ccsnet.heads._base import CCSVariant, HeadConfig
from ccsnet.optim import OptimConfig, create_optimizer
from ccsnet.optimizer_state import REST, restore_state, state_tensors
from ccsnet.segmenter import ModelConfig, Segmenter, create_segmenter
from ccsnet.sharding import full_state_dict, full_tensor, layers, like, load_full, shard, whole
from tests.processes import in_processes

NUM = 2
TOLERANCE = 1e-6
VARIANT = CCSVariant(
    projections="separate",
    centres="c3+c4",
    coarse_bias="learned",
    attention_heads=2,
    centre_temperature="learned",
    centres_per_class=2,
    attention_rounds=2,
    centre_loss_weight=0.1,
)
VIT, CONV = "test_vit", "test_efficientnet"
CASES = {
    "transformer, sgd": (VIT, "ccs", "sgd", {}),
}
MORE_CASES = {
    "convolutions, adamw": (CONV, "ccs", "adamw", {}),
    "all variants of ccs": (CONV, "ccs", "sgd", {"variant": VARIANT}),
    "transformer, adamw": (VIT, "ccs", "adamw", {"frozen_stages": 2}),
    **{head: (CONV, head, "sgd", {}) for head in ("segformer_mmseg", "smp.UPerNet", "smp.Unet")},
    "mit": ("mit_b0", "segformer", "adamw", {}),
    "convnext": ("test_convnext", "fcn", "sgd", {"frozen_stages": 4}),
    "resnet": ("resnet18", "smp.DeepLabV3Plus", "adamw", {}),
}
CHECKPOINTED = ("transformer, adamw", "mit", "resnet")


# What a process runs


def made(backbone: str, head: str = "ccs", **settings) -> Segmenter:
    torch.manual_seed(0)
    variant = settings.pop("variant", CCSVariant())
    head_config = HeadConfig(dim=16, coarse_dim=16, top_k=2, dropout=0.0, variant=variant)
    config = ModelConfig(
        backbone=backbone, head=head, head_config=head_config, drop_path=0.0, **settings
    )
    # In float64: AdamW divides rounding by its eps where a gradient is 0.
    return create_segmenter(config, num_classes=3).double()


def optimizer_of(model: Segmenter, name: str) -> torch.optim.Optimizer:
    return create_optimizer(model, OptimConfig(optimizer=name, lr=1e-2))


def images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def learn(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    average: WeightAverage | None = None,
    steps: int = 3,
) -> None:
    for _ in range(steps):
        output = model(batch)
        torch.stack([maps.square().mean() for maps in output if maps is not None]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model)


def error_of(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert list(got) == list(expected)
    assert not any(isinstance(tensor, DTensor) for tensor in got.values())
    pairs = [(got[name].double(), tensor.double()) for name, tensor in expected.items()]
    return max(float((a - b).abs().max() / max(1, b.abs().max())) for a, b in pairs)


def compared(
    backbone: str, head: str, optimizer: str, settings: dict, *, checkpointed: bool = False
) -> dict[str, float]:
    """Errors of a model in shares against one that learns from the whole batch."""
    rank = torch.distributed.get_rank()
    batch = images()
    mine = batch[2 * rank : 2 * rank + 2]
    alone, shared = made(backbone, head, **settings), made(backbone, head, **settings)
    synchronise(shared)
    for model in (alone, shared) if checkpointed else ():
        model.backbone.set_grad_checkpointing()
    shared.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    averages = WeightAverage(alone, 0.9), WeightAverage(shared, 0.9)
    optimizers = optimizer_of(alone, optimizer), optimizer_of(shared, optimizer)
    shard(shared, optimizers[1])
    shard(averages[1].model)  # pyright: ignore[reportArgumentType]
    assert all(isinstance(parameter, DTensor) for parameter in shared.parameters())
    learn(alone, optimizers[0], batch, averages[0])
    learn(shared, optimizers[1], mine, averages[1])
    errors = {"weights": error_of(full_state_dict(shared), alone.state_dict())}
    errors["average"] = error_of(full_state_dict(averages[1].model), averages[0].model.state_dict())

    state, expected = state_tensors(optimizers[1], gather=full_tensor), state_tensors(optimizers[0])
    del state[REST], expected[REST]
    errors["state"] = error_of(state, expected)

    errors["validation"] = 0.0
    for model, average in ((shared, alone), (averages[1].model, averages[0].model)):
        model.eval()
        average.eval()
        with whole(model), torch.inference_mode():
            for _ in range(3 * rank + 1):  # Not as often in one process as in the other.
                got = {"logits": model(mine).logits}
            errors["validation"] += error_of(got, {"logits": average(mine).logits})
    alone.train()
    shared.train()
    learn(alone, optimizers[0], batch)
    learn(shared, optimizers[1], mine)
    errors["weights after validation"] = error_of(full_state_dict(shared), alone.state_dict())
    return errors


def resumed() -> bool:
    """Whether a model and an optimizer filled from whole tensors go on with the same bits."""
    rank = torch.distributed.get_rank()
    mine = images()[2 * rank : 2 * rank + 2]
    first, second = made(VIT), made(VIT)
    optimizers = []
    for model in (first, second):
        optimizers.append(optimizer_of(model, "adamw"))
        shard(model, optimizers[-1])
    learn(first, optimizers[0], mine)
    tensors = {name: t.clone() for name, t in full_state_dict(first).items()}
    state = state_tensors(optimizers[0], gather=full_tensor)
    load_full(second, tensors)
    restore_state(optimizers[1], {name: t.clone() for name, t in state.items()}, scatter=like)
    for model, optimizer in zip((first, second), optimizers, strict=True):
        learn(model, optimizer, mine)
    after = full_state_dict(first)
    assert not torch.equal(after["head.classifier.weight"], tensors["head.classifier.weight"])
    return all(torch.equal(t, after[name]) for name, t in full_state_dict(second).items())


def refused() -> str:
    """What is said of weights of another shape."""
    model = made(VIT)
    shard(model)
    tensors = full_state_dict(model)
    tensors["head.classifier.weight"] = torch.zeros(5, 16, 1, 1)
    with pytest.raises(RuntimeError) as raised:
        load_full(model, tensors)
    return str(raised.value)


def all_results(cases: dict) -> dict[str, object]:
    return {
        "errors": {name: compared(*case) for name, case in cases.items()},
        "resumed": resumed(),
        "refused": refused(),
    }


def more_results() -> dict[str, float]:
    return {
        name: max(compared(*case, checkpointed=name in CHECKPOINTED).values())
        for name, case in MORE_CASES.items()
    }


# Several processes


@functools.cache
def results() -> list[dict]:
    return in_processes(all_results, NUM, CASES, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shares_learn_as_one_process(case):
    """Three steps with clipped gradients: weights, their average, the optimizer's state."""
    for result in results():
        for what, error in result["errors"][case].items():
            assert error < TOLERANCE, what


@pytest.mark.slow
def test_other_parts_learn_in_shares():
    for errors in in_processes(more_results, NUM, timeout=240):
        for case, error in errors.items():
            assert error < TOLERANCE, case


@pytest.mark.slow
def test_what_is_gathered_can_be_shared_out():
    for result in results():
        assert result["resumed"]
        assert "head.classifier.weight" in result["refused"]
        assert "[5, 16, 1, 1]" in result["refused"]


# One process


@pytest.mark.parametrize(
    ("backbone", "num", "kinds"),
    [
        (VIT, 6, {"Block"}),
        ("resnet18", 8, {"BasicBlock"}),
        ("test_convnext", 12, {"ConvNeXtBlock", "ConvNeXtStage", "Sequential"}),
        ("mit_b0", 8, {"Block"}),
    ],
)
def test_layers_are_blocks(backbone, num, kinds):
    found = layers(create_backbone(backbone))
    assert len(found) == num
    assert {type(layer).__name__ for layer in found} <= kinds
    inside = [id(parameter) for layer in found for parameter in layer.parameters()]
    assert len(inside) == len(set(inside))


def test_a_backbone_without_order_has_no_layers():
    backbone = create_backbone(VIT)
    backbone.layer_of = None
    assert layers(backbone) == []


def test_what_is_not_sharded_stays_as_it_is():
    model = made(VIT)
    with whole(model):
        model.eval()
    tensor = torch.ones(3)
    assert full_tensor(tensor) is tensor
    copied = like(tensor, nn.Parameter(torch.zeros(3)))
    assert torch.equal(copied, tensor)
    assert copied.data_ptr() != tensor.data_ptr()
    other = copy.deepcopy(model)
    nn.init.zeros_(other.head.classifier.bias)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    load_full(model, full_state_dict(other))
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
