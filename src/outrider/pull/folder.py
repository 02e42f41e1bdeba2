"""Whether a local folder is a model that may be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outrider.errors import ModelError

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(path: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> None:
    """Raise :class:`ModelError`, with the remedy, unless ``path`` can be given to ``from_pretrained``.

    Refused: no config, no weights, shards that are missing, weights only as pickles (a pickle can run code;
    ``allow_pickle`` lets it pass, and transformers then reads it with ``weights_only``), and a family that
    transformers does not know itself and that brings its own code (``trust_remote_code`` lets it pass).
    """
    weights = sorted(path.glob("*.safetensors"))
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        if weights:
            return  # a LoRA adapter: its base model is named inside
        raise ModelError(f"adapter folder {str(path)!r} has no weights", hint="Expected *.safetensors")
    config = _read(path / "config.json", path)
    if not weights:
        _without_safetensors(path, allow_pickle)
    for index in path.glob("*.safetensors.index.json"):
        shards = set(_read(index, path).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (path / shard).is_file())
        if missing:
            raise ModelError(
                f"model folder {str(path)!r} is incomplete",
                why=f"{len(missing)} of {len(shards)} weight files are missing, first {missing[0]!r}",
                hint="Copy or pull it again",
            )
    if "auto_map" in config and not trust_remote_code and not _native(config):
        raise ModelError(
            f"model {str(path)!r} (model_type {config.get('model_type')!r}) needs code from its own folder",
            why="Its config has auto_map, transformers does not know the family; such code can do anything",
            hint="Read the code, then pass trust_remote_code=True",
        )


def _without_safetensors(path: Path, allow_pickle: bool) -> None:
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles and allow_pickle:
        return
    if pickles:
        raise ModelError(
            f"model folder {str(path)!r} has its weights only as a pickle ({pickles[0]!r})",
            why="A pickle can run code when it is read",
            hint="Convert it to safetensors, or pass allow_pickle=True (it is then read with weights_only)",
        )
    held = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
    raise ModelError(
        f"model folder {str(path)!r} has no weights",
        why=f"Expected *.safetensors beside config.json; it holds {held}",
        hint="Copy the weights there, or pull the model",
    )


def _read(file: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"folder {str(folder)!r} is not a model: it has no {file.name}",
            hint="Name the folder that holds config.json and the weights",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(file)!r} cannot be read", why=str(error), hint="Copy it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{str(file)!r} is not a configuration", why="It holds no JSON object")
    return content


def _native(config: dict[str, Any]) -> bool:
    """Whether transformers has this family itself, so that the folder's code is not needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES
