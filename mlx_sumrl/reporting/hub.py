"""An exported folder on the Hugging Face hub, by its own client. Never imports mlx.

Invariant: nothing is made or sent before the hub has said whose the token is and that it may write there; the token
goes to the hub alone, and into no message.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_sumrl.errors import UserError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_hub(repository: str, api: Any | None = None) -> Any:
    """The hub's client, once the hub has told that its token may write to ``repository`` (OWNER/NAME).

    Raises `UserError` for a name that the hub does not take, no token, a wrong one, one that may only read or is not
    OWNER's, and a hub that cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    owner, slash, name = repository.partition("/")
    try:
        validate_repo_id(repository)
        valid = bool(owner and slash and name)
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"--push {repository} is no name of a repository: give OWNER/NAME, as my-name/my-model"
        )
    api = api or HfApi()
    try:
        who = api.whoami()
    except LocalTokenNotFoundError:
        raise UserError(f"--push {repository} needs a token of {api.endpoint}: {LOG_IN}") from None
    except Exception as error:  # httpx's and the client's own, of many kinds
        raise UserError(_refused(repository, api, error)) from None
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(
            f"the token for --push {repository} may only read: make one that may write, and {LOG_IN}"
        )
    owners = [who.get("name", ""), *(one.get("name", "") for one in who.get("orgs", []))]
    if owner.lower() not in [one.lower() for one in owners]:
        raise UserError(
            f"--push {repository}: the token is of {owners[0]}, who is not {owner} and not among its members; "
            f"push to {owners[0]}/{name}, or {LOG_IN}"
        )
    return api


def push(
    folder: Path, repository: str, private: bool, api: Any, replaced: Mapping[str, bytes] | None = None
) -> str:
    """Make the repository where it is not there yet, send every file of ``folder`` to it, and say where they are.

    ``api`` is what `check_hub` gave; ``private`` counts for a repository that is made; ``replaced`` are files whose
    content is another there. Raises `UserError` where the hub refuses.
    """
    replaced = replaced or {}
    try:
        with tempfile.TemporaryDirectory() as staged:
            for file in folder.iterdir():
                if file.name not in replaced:
                    (Path(staged) / file.name).symlink_to(file.resolve())
            for name, content in replaced.items():
                (Path(staged) / name).write_bytes(content)
            url = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
            api.upload_folder(
                repo_id=repository,
                folder_path=staged,
                repo_type="model",
                commit_message=f"{folder.name}, exported by mlx_sumrl",
            )
    except Exception as error:
        raise UserError(_refused(repository, api, error)) from None
    return str(url)


def _refused(repository: str, api: Any, error: Exception) -> str:
    """What the hub said, in a sentence. Its own messages may hold request headers: only kind and status are told."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"{api.endpoint} does not know the token for --push {repository}: {LOG_IN}"
    if status == 403:
        return f"{api.endpoint} does not let this token write to {repository}: {LOG_IN}"
    if status is None:
        return (
            f"--push {repository} failed ({type(error).__name__}): check the network, and that {api.endpoint} is the "
            "hub; what was exported is still there"
        )
    return (
        f"{api.endpoint} refused --push {repository} with status {status}: try again later; what was exported is still "
        "there"
    )
