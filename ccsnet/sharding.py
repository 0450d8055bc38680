"""FSDP: each process keeps a share of every weight, for backbones that do not fit on one device.

What a sharded model needs beyond a copied one (DDP): its forward only through the model itself,
which gathers the weights; weights read and written through `full_tensor` and `like`; and `whole`
where processes do not run it equally often. Everything here waits for all processes, so all must
call it.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ccsnet.backbones._base import Backbone
from ccsnet.segmenter import Segmenter


def shard(model: Segmenter, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Leave each process its share of a model's weights, gradients and optimizer's state.

    The backbone's layers are gathered one by one when they compute; stem and head once for each
    pass. Gradients are averaged over the processes, as with DDP, after every pass. Buffers, such
    as the statistics of norms, stay whole.

    A sharded model cannot be copied (`copy.deepcopy`): make copies before, and shard them too.

    Args:
        model: On its device, with the same weights in all processes; changed in place.
        optimizer: One of its parameters that has not made a step; it gets the shares.
    """
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    before = dict(model.named_parameters())
    for parameter in before.values():  # FSDP cuts no weights in another order, channels last.
        parameter.data = parameter.data.contiguous()
    for layer in layers(model.backbone):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if optimizer is not None:
        assert not optimizer.state, "the state would stay with the whole weights"
        after = dict(model.named_parameters())
        share_of = {parameter: after[name] for name, parameter in before.items()}
        for group in optimizer.param_groups:
            group["params"] = [share_of[parameter] for parameter in group["params"]]


def layers(backbone: Backbone) -> list[nn.Module]:
    """The largest parts of a backbone that lie in one of its layers; blocks, for most.

    The stem is none of them, nor are single norms and the like; of a backbone whose layers have no
    order there are none.
    """
    layer_of = backbone.layer_of
    if layer_of is None:
        return []
    found: list[nn.Module] = []
    waiting = [("", backbone.features)]
    while waiting:
        prefix, module = waiting.pop()
        depths = {layer_of[prefix + name] for name, _ in module.named_parameters()}
        owners = sum(any(True for _ in m.parameters(recurse=False)) for m in module.modules())
        in_one = len(depths) == 1 and depths != {0}
        # A list is not called itself, so nothing could gather its weights.
        if in_one and owners > 1 and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            found.append(module)
        elif depths and depths != {0}:
            waiting += [(f"{prefix}{name}.", child) for name, child in module.named_children()]
    return found


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within the block every process holds all weights, and may run the model as often as it likes.

    For validation, where shares of the images differ in number: otherwise each pass gathers
    weights, and waits for ever for a process that makes fewer. The weights must fit on the device
    once; gradients and the optimizer's state need not. A model that is not sharded is left alone.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            # The root's weights are needed first when gradients are computed: torch keeps them.
            module.set_reshard_after_forward(module is not model, recurse=False)


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU, in every process; one that is not sharded is returned as it is.

    All processes must ask for the same tensors in the same order.
    """
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor, sharded and placed like a parameter: what `full_tensor` undoes.

    Every process must hold the value. One that has not the parameter's shape cannot be cut like it
    and is copied as it is.
    """
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value.detach().to(parameter.device, copy=True)
    mesh, placements = parameter.device_mesh, parameter.placements
    # No source: nothing is sent, each process cuts its share out of its own copy.
    shares = distribute_tensor(
        value.detach().to(parameter.device), mesh, placements, src_data_rank=None
    )
    return shares.clone()


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights and buffers, whole, under their own names, in every process."""
    return {name: full_tensor(tensor.detach()) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def load_full(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a model from what `full_state_dict` returned in this or any other number of processes.

    Raises:
        RuntimeError: Names or shapes differ from the model's.
    """
    own = model.state_dict()
    model.load_state_dict({n: like(v, own[n]) if n in own else v for n, v in tensors.items()})
