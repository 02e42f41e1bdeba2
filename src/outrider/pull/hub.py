"""Models of the Hugging Face hub, in the hub's own cache: what others pulled is not pulled again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from outrider.errors import PullError
from outrider.pull.progress import Progress

TIMEOUT_S = (3.0, 10.0)  # a machine without the hub must find out soon
# Weights in safetensors, configuration, tokenizer; not the copies for other frameworks in subfolders.
PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
PICKLES = ["*.bin"]
SUBFOLDERS = ["*/*"]


def snapshot(repo: str, *, progress: Progress, allow_pickle: bool = False) -> tuple[Path, str]:
    """``(folder, commit)`` of ``repo``, downloaded or resumed if need be.

    With ``HF_HUB_OFFLINE``, or when the hub does not answer within seconds, only what its cache holds
    completely is used. Raises :class:`PullError` saying which it was.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE or _truthy(os.environ.get("HF_HUB_OFFLINE", ""))
    problem = "HF_HUB_OFFLINE is set" if offline else unreachable(constants.ENDPOINT)
    wanted: dict[str, Any] = {
        "allow_patterns": PATTERNS + (PICKLES if allow_pickle else []),
        "ignore_patterns": SUBFOLDERS,
    }
    try:
        if problem:
            folder = Path(snapshot_download(repo, local_files_only=True, **wanted))
            if not _has_weights(folder):  # an earlier look at the config alone leaves a folder too
                raise PullError(f"hub model {repo!r} is not in the local hub cache", why=problem)
        else:
            progress.note(f"hub: {repo}")
            folder = Path(snapshot_download(repo, etag_timeout=10, **wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = problem or str(error).strip().split("\n")[0]
        hint = "Check the id, and `hf auth login` if the model is gated" if not problem else ""
        raise PullError(f"hub model {repo!r} could not be fetched", why=why, hint=hint) from error
    return folder, folder.name


def unreachable(endpoint: str) -> str:
    """Why the hub does not answer, or "" when it does. One small request, no retries."""
    import requests

    try:
        requests.head(endpoint, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.RequestException:
        return "The hub does not answer from this machine"
    return ""


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _truthy(text: str) -> bool:
    return text.strip().upper() in {"1", "ON", "YES", "TRUE"}
