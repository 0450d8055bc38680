"""Models on the Hugging Face hub: a repository there is a run's folder, with a page about it.

Only files of a few known names are fetched, and the weights are safetensors: nothing that comes
from the hub is executed.
"""

import contextlib
import dataclasses
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import ModelCard, ModelHubMixin, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ccsnet.backbones._files import answers
from ccsnet.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    ClassInfo,
    read_checkpoint,
    save_checkpoint,
)
from ccsnet.config import RunConfig, to_json
from ccsnet.data.images import write_bytes
from ccsnet.errors import InputError
from ccsnet.model_card import model_card, stored_metrics
from ccsnet.plugins import plugin_names
from ccsnet.publish import account_token, make_room, refused
from ccsnet.run_folder import BEST_FILE, CONFIG_FILE, kept
from ccsnet.segmenter import Segmenter

Published = TypeVar("Published", bound="HubModel")

CARD_FILE = "README.md"
PREFIX = "hf://"
LOCAL = "runs"
"""Below this folder training writes; a name that starts so is never looked for on the hub."""

_NAME = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[A-Za-z0-9_][\w./-]*))?", re.A)


class HubName(NamedTuple):
    """A model on the hub."""

    repository: str
    """ "user/model"."""
    revision: str | None = None
    """A branch, a tag or a commit; none: the newest of the main branch."""

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def find_run(name: Path | str) -> Path:
    """The folder or file that a user's name for a run stands for; from the hub it is downloaded.

    Args:
        name: A run's folder, a checkpoint, or a model on the hub: "user/model",
            "user/model@revision". What is there as a file or a folder is that; "hf://user/model"
            always means the hub.

    Raises:
        FileNotFoundError: The hub has no such model.
        InputError: It cannot be downloaded, or is none of ours.
    """
    wanted = hub_name(name)
    return Path(name) if wanted is None else download(wanted)


def open_run(name: Path | str) -> Checkpoint:
    """What the checkpoint says of itself that a user's name for a run stands for (`find_run`).

    Raises:
        FileNotFoundError: Nothing is there, here or on the hub.
        InputError: It cannot be downloaded, is damaged, or is none of ours.
    """
    return read_checkpoint(find_run(name))


def hub_name(name: Path | str) -> HubName | None:
    """The model on the hub that a name means; None where it can only mean a file or a folder.

    Raises:
        InputError: It starts with "hf://" and is no name of the hub.
    """
    text = str(name)
    explicit = text.startswith(PREFIX)
    if not explicit and (isinstance(name, Path) or _is_local(text)):
        return None
    found = _NAME.fullmatch(text.removeprefix(PREFIX))
    if found is not None and ".." not in (found["revision"] or ""):
        with contextlib.suppress(HFValidationError):
            validate_repo_id(found["repository"])
            return HubName(found["repository"], found["revision"])
    if explicit:
        raise InputError(
            f"{text.removeprefix(PREFIX)!r} names no model on the Hugging Face hub. Allowed: "
            "USER/MODEL, and @REVISION behind it; letters, digits, - _ and . in each."
        )
    return None


def _is_local(text: str) -> bool:
    """Whether a name like "a/b" means a path: it is there, or what it would be in is there."""
    first = text.partition("/")[0]
    return first == LOCAL or text.endswith(".safetensors") or os.path.lexists(first)


def download(
    name: HubName,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder, in the hub's cache, of a model from the hub; it is like a run's.

    Without a network, what was downloaded before is taken.

    Args:
        name: Which.
        token: Of the user's account; none: the one that `hf auth login` has stored.
        cache_dir: Another folder than the hub's own cache.
        force_download: Download what is there already.
        local_files_only: Ask no server.

    Raises:
        FileNotFoundError: The hub has no such model.
        InputError: It cannot be downloaded, is none of ours, or needs code that it does not have.
    """
    online = not local_files_only and _answers()
    silent = "" if online else f"{_silent()} "
    failed = (
        f"There is no run or checkpoint {name} here, and a model of that name cannot be downloaded "
        f"from the Hugging Face hub. {silent}Give a run's folder or a .safetensors file, or try "
        "again later."
    )

    def fetch(*files: str) -> Path:
        with explained(name, failed):
            return Path(
                huggingface_hub.snapshot_download(
                    name.repository,
                    revision=name.revision,
                    allow_patterns=list(files),
                    local_files_only=not online,
                    force_download=force_download,
                    token=token,
                    cache_dir=cache_dir,
                    endpoint=constants.ENDPOINT,
                )
            )

    folder = fetch(BEST, CONFIG_FILE, BEST_FILE, CARD_FILE)
    if not (folder / BEST).is_file():
        folder = fetch(LAST)
    if not any((folder / file).is_file() for file in (BEST, LAST)):
        where = "on the Hugging Face hub" if online else f"in the cache, {folder},"
        raise FileNotFoundError(
            f"The model {name} {where} holds no {BEST}. `push_to_hub` of a model of ccsnet puts it "
            "there; weights of other programs are not read from the hub: download them and see "
            "`ccsnet convert --help`."
        )
    _refuse_code(name, read_checkpoint(folder))
    return folder


def _refuse_code(name: HubName, checkpoint: Checkpoint) -> None:
    """A stranger does not choose which of this machine's modules are imported and called."""
    config = checkpoint.config
    for part, value in (("head", config.model.head), ("data set", config.data.dataset)):
        if ":" in value:
            raise InputError(
                f"The model {name} names as its {part} {value!r}, code of a module on your own "
                "machine, which is not run at the word of a download. If you know whose it is, "
                f"give the folder instead of the name: {checkpoint.path.parent}"
            )


def _silent() -> str:
    return f"{constants.ENDPOINT} does not answer; is there a network?"


def _answers() -> bool:
    """Whether the hub, or a proxy before it, says anything."""

    def ask(seconds: float) -> None:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=seconds)

    return answers(ask)


@contextlib.contextmanager
def explained(name: HubName, what_failed: str) -> Iterator[None]:
    """Say what the hub's errors mean for the user."""
    try:
        yield
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(
            f"The model {name} is given to those alone whom its owner has let in. Ask for access "
            f"on {constants.ENDPOINT}/{name.repository}, then `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no run or checkpoint {name} here, and the Hugging Face hub has no model of "
            "that name, or shows it to its owner alone. Check the name; for a private one, "
            "`hf auth login` first."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"The model {name.repository} on the Hugging Face hub has no revision "
            f"{name.revision!r}: name a branch, a tag or a commit."
        ) from error
    # Of the hub, of its http library, of the system: there are many more.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise InputError(f"{what_failed} ({type(error).__name__}: {reason})") from error


class HubModel(
    ABC,
    ModelHubMixin,
    library_name="ccsnet",
    pipeline_tag="image-segmentation",
    tags=["semantic-segmentation"],
):
    """What a predictor needs to be published and fetched.

    A class that inherits it has the attributes below and makes itself of a checkpoint in
    `of_checkpoint`.

    Attributes:
        model: The network.
        info: What its outputs mean.
        checkpoint: Where the network came from; None of one made by hand or the mean of several.
    """

    model: Segmenter
    info: ClassInfo
    checkpoint: Checkpoint | None = None

    @classmethod
    @abstractmethod
    def of_checkpoint(
        cls: type[Published], checkpoint: Checkpoint, device: str | None = None
    ) -> Published:
        """The predictor that an opened checkpoint describes, on a device (the best by default)."""

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls: type[Published],
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Published:
        """Load a model from the hub, or from a folder that `save_pretrained` or a run wrote.

        Args:
            pretrained_model_name_or_path: "user/model", "user/model@revision", or a folder.
            device: cpu, cuda, mps; by default the best there is.
            revision: A branch, a tag or a commit of the model on the hub.
            token: As in `download`.
            cache_dir: As in `download`.
            force_download: As in `download`.
            local_files_only: As in `download`.

        Raises:
            FileNotFoundError: There is no such model.
            InputError: It cannot be downloaded, is damaged, or is none of ours.
        """
        name = pretrained_model_name_or_path
        if revision is not None and not Path(name).exists():
            name = f"{name}@{revision}"
        wanted = hub_name(name)
        path = Path(name)
        if wanted is not None:
            path = download(
                wanted,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return cls.of_checkpoint(read_checkpoint(path), device)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, repo_id: str, *, licence: str | None = None, **options: Any
    ) -> str:
        """Publish the model: its weights alone, its settings, its figures and a page about it.

        Folders of this machine and the names of the images are left out.

        Args:
            repo_id: "user/model".
            licence: Of the weights, as the hub calls it, such as "apache-2.0"; none: not stated.
            options: As of huggingface_hub's `ModelHubMixin.push_to_hub`: private, token, branch,
                commit_message, create_pr and others.

        Returns:
            The address of what was published.

        Raises:
            InputError: The name is none, the model was made by hand, nobody is logged in, it is to
                be private where a public one is, or the hub does not take it.
        """
        name = hub_name(f"{PREFIX}{repo_id.removeprefix(PREFIX)}")
        if name is None or name.revision is not None:
            raise InputError(f"{repo_id!r} names a revision; push to USER/MODEL, with `branch=`.")
        checkpoint = self._own_checkpoint()  # Before the hub is told to make a repository.
        stored_metrics(checkpoint)
        options["model_card_kwargs"] = {"name": name.repository, "licence": licence}
        options["token"] = token = account_token(options.get("token"))
        failed = f"The model could not be published as {name} on the Hugging Face hub."
        if not _answers():
            raise InputError(f"{failed} {_silent()}")
        with refused(failed):
            make_room(name.repository, token, options.get("private"), options.get("branch"))
            return super().push_to_hub(name.repository, **options)

    def generate_model_card(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, name: str = "USER/MODEL", licence: str | None = None
    ) -> ModelCard:
        """The page about the model, made from the run's own files."""
        checkpoint = self._own_checkpoint()
        public = dataclasses.replace(checkpoint, config=public_config(checkpoint))
        return ModelCard(model_card(public, name, licence))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **options: Any
    ) -> str | None:
        """Write what `push_to_hub` would publish into a folder; what is there is replaced.

        Args:
            save_directory: The folder, made if missing.
            options: As of huggingface_hub's `ModelHubMixin.save_pretrained`.

        Raises:
            InputError: It is a run's own folder, or the model was made by hand.
        """
        if kept(Path(save_directory), LAST):
            raise InputError(
                f"{save_directory} is the folder of a training run, whose settings and figures say "
                "more than is published. Name another folder."
            )
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write what a run's folder has: the weights to predict with, settings, figures."""
        checkpoint = self._own_checkpoint()
        config = public_config(checkpoint)
        save_checkpoint(
            save_directory / BEST,
            self.model.state_dict(),
            config,
            checkpoint.info,
            step=checkpoint.step,
            miou=checkpoint.miou,
            best_miou=checkpoint.best_miou,
            best_step=checkpoint.best_step,
        )
        write_bytes(save_directory / CONFIG_FILE, to_json(config).encode())
        if stored_metrics(checkpoint) is not None:
            text = (checkpoint.path.parent / BEST_FILE).read_text(encoding="utf-8")
            # Names of images may say more than their owner wants to publish.
            figures = json.loads(text) | {"per_image": []}
            write_bytes(save_directory / BEST_FILE, json.dumps(figures, indent=1).encode())

    def _own_checkpoint(self) -> Checkpoint:
        if self.checkpoint is None:
            raise InputError(
                "This model was put together by hand or is the mean of several, so that no "
                "checkpoint describes it. Publish one that `ccsnet.load` has read from a run's "
                "folder or a single checkpoint."
            )
        return self.checkpoint


def public_config(checkpoint: Checkpoint) -> RunConfig:
    """A run's settings without the folders of the machine that it ran on."""
    config = checkpoint.config
    data = dataclasses.replace(config.data, root=None)
    if config.data.dataset not in plugin_names("ccsnet.datasets"):
        # Without ":", which would name code.
        data = dataclasses.replace(data, dataset=checkpoint.info.dataset.replace(":", "-"))
    weights = config.model.backbone_weights
    if weights != Path(weights).name and not weights.startswith("package:"):
        weights = Path(weights).name
    model = dataclasses.replace(config.model, backbone_weights=weights)
    return dataclasses.replace(config, data=data, model=model)
