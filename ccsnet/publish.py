"""Before a model is sent to the Hugging Face hub: who sends it, to where, and who may see it."""

import contextlib
from collections.abc import Iterator

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ccsnet.errors import InputError

HINTS = {
    401: "The hub does not know your token, or it has ended: `hf auth login` stores another. ",
    403: "Is your account in it, and may your token write? `hf auth login` stores another. ",
    429: "The hub was asked too often: wait a few minutes. ",
}
"""What to do, by the status with which the hub refuses."""


def account_token(token: str | bool | None = None) -> str:
    """What says to the hub who is publishing.

    Args:
        token: Given by the user; none: the one that `hf auth login` has stored, or HF_TOKEN.

    Raises:
        InputError: There is none.
    """
    found = token if isinstance(token, str) else None if token is False else _stored_token()
    if not found:
        raise InputError(
            "To publish, the Hugging Face hub must know who you are, and nobody is logged in here. "
            "`hf auth login` once, or set HF_TOKEN to a token that may write."
        )
    return found


def _stored_token() -> str | None:
    with refused("The token of your account on the Hugging Face hub cannot be read."):
        return huggingface_hub.get_token()


def make_room(repository: str, token: str, private: bool | None, branch: str | None) -> None:
    """Make a repository on the hub where there is none, and the branch.

    Args:
        repository: "user/model".
        token: Of the account.
        private: Show it to its owner alone; none: as the hub has it.
        branch: Made from the main one if missing; none: no other.

    Raises:
        InputError: It is to be private, and is public already.
    """
    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    # The hub leaves a repository that is there as it is, and says nothing.
    if private and not api.model_info(repository).private:
        raise InputError(
            f"{repository} is on the Hugging Face hub already, and public; nothing was published. "
            f"Make it private in its settings, {api.endpoint}/{repository}/settings, or choose "
            "another name."
        )
    if branch is not None:
        api.create_branch(repository, branch=branch, exist_ok=True)


@contextlib.contextmanager
def refused(what_failed: str) -> Iterator[None]:
    """Say what it means for the user that the hub does not take something.

    Raises:
        InputError: Anything went wrong in the block.
    """
    try:
        yield
    except InputError:
        raise
    # Of the hub, of its http library, of the system: there are many more.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        hint = HINTS.get(status, "")
        raise InputError(f"{what_failed} {hint}({type(error).__name__}: {reason})") from error
