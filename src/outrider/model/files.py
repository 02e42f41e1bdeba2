"""Reading a model from disk: weights, adapters, tokenizers, and clear errors for what cannot be read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outrider.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_QUANTIZERS: dict[str, tuple[str, ...]] = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
    "torchao": ("torchao",),
    "aqlm": ("aqlm",),
    "eetq": ("eetq",),
    "fbgemm_fp8": ("fbgemm_gpu",),
    "higgs": ("flute",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
    "auto-round": ("auto_round",),
    "quark": ("quark",),
    "fp8": (),
    "mxfp4": (),
}
"""Quantisation methods of checkpoints -> the packages that transformers reads them with."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "vocab.txt")


def find(name: str, *, allow_pickle: bool, trust_remote_code: bool) -> Path:
    """The folder of a model: local, unpacked from a ``.gguf`` file, pulled already, or pulled now.

    Raises ``ModelError`` for an unknown name, an alias not pulled yet, and a folder that may not be loaded.
    """
    from outrider import pull

    found = Path(pull.locate(name, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code))
    if found.is_dir():
        return found
    return Path(pull.fetch(name, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code).path)


def read(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> PreTrainedModel:
    """The causal language model in ``folder`` on ``device``, in ``dtype`` (as stored if quantised).

    Pickled weights are read only with ``allow_pickle``, and then by ``torch.load(weights_only=True)``.
    Raises ``ModelError`` naming the damaged file, the missing package, or what transformers said.
    """
    from transformers import AutoModelForCausalLM

    config = _read_config(folder)
    quantised = _check_quantised(folder, config)
    check_files(folder)
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if quantised else dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            **({"device_map": str(device)} if quantised else {}),
        )
    except Exception as error:
        raise ModelError(
            f"model folder {str(folder)!r} ({config.get('model_type', 'unknown family')}) cannot be loaded",
            why=f"{type(error).__name__}: {str(error).strip()[:500] or 'no message'}",
            hint="Check that it is a causal language model, and that transformers is new enough for it",
        ) from error
    return hf.eval() if quantised else hf.eval().to(device)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{str(folder / 'config.json')!r} cannot be read", why=str(error), hint="Fetch or copy the model again."
        ) from None
    if not isinstance(config, dict):
        raise ModelError(f"{str(folder / 'config.json')!r} is no configuration", hint="Fetch or copy the model again.")
    return config


def check_files(folder: Path) -> None:
    """Raise ``ModelError`` naming the first safetensors file that is truncated or damaged."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except Exception as error:
            raise ModelError(
                f"weight file {str(file)!r} is damaged or incomplete",
                why=f"{error} ({file.stat().st_size} bytes are there)",
                hint="Copy or pull it again",
            ) from error


def _check_quantised(folder: Path, config: dict[str, Any]) -> str:
    """The quantisation method of the checkpoint ('' for none); raises when nothing here can read it."""
    settings = config.get("quantization_config") or {}
    if not settings:
        return ""
    method = str(settings.get("quant_method") or "bitsandbytes").lower()
    if method not in _QUANTIZERS:
        raise ModelError(
            f"model {str(folder)!r} is quantised with {method!r}, which is not known",
            hint=f"Use an unquantised checkpoint, a GGUF file, or one of: {', '.join(sorted(_QUANTIZERS))}",
        )
    missing = [package for package in _QUANTIZERS[method] if not _installed(package)]
    if missing:
        raise ModelError(
            f"model {str(folder)!r} is quantised with {method!r}",
            why=f"Reading it needs {' and '.join(missing)}, not installed here",
            hint=f"Run: pip install {' '.join(p.replace('_', '-').replace('.', '-') for p in missing)}; "
            "or use an unquantised checkpoint or a GGUF file",
        )
    return method


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


# -- adapters ---------------------------------------------------------------------------------------------


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds a LoRA adapter and no model of its own."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path, allow_pickle: bool = False, trust_remote_code: bool = False) -> Path:
    """The folder of the model that the adapter in ``folder`` was trained on. Raises ``ModelError``."""
    _need_peft(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    name = settings.get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"adapter {str(folder)!r} does not name its base model",
            hint="Load the base model and pass adapter=FOLDER",
        )
    beside = folder / name  # relative to the adapter, where it was saved together with its base
    try:
        local = str(beside) if (beside / "config.json").is_file() else str(name)
        return find(local, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(
            f"the base model {name!r} of adapter {str(folder)!r} cannot be found",
            why=str(error),
            hint="Load the base model from where it is and pass adapter=FOLDER",
        ) from error


def put_on(hf: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``hf`` with the adapter in ``folder``: merged into its weights, or beside them when they are quantised.

    ``hf`` itself is changed. Raises ``ModelError`` when peft is missing or the adapter does not fit.
    """
    _need_peft(folder)
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"adapter folder {str(folder)!r} has no adapter_config.json")
    check_files(folder)
    try:
        wrapped = PeftModel.from_pretrained(hf, str(folder))
        if getattr(hf, "hf_quantizer", None) is None:
            return wrapped.merge_and_unload(safe_merge=True).eval()
        return wrapped.get_base_model().eval()
    except Exception as error:
        raise ModelError(
            f"adapter {str(folder)!r} does not fit {type(hf).__name__}",
            why=f"{type(error).__name__}: {str(error).strip()[:500]}",
            hint="Check that it was trained on this base model",
        ) from error


def _need_peft(folder: Path) -> None:
    if not _installed("peft"):
        raise ModelError(
            f"{str(folder)!r} is a LoRA adapter",
            why="Adapters are read with peft, which is not installed",
            hint="Run: pip install 'outrider[lora]'",
        )


# -- tokenizers -------------------------------------------------------------------------------------------


def tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in ``folder``; None when it has no such files. Raises ``ModelError`` when damaged."""
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {str(folder)!r} cannot be read",
            why=f"{type(error).__name__}: {str(error).strip()[:300]}",
            hint="Copy the tokenizer files again, or pass tokenizer=",
        ) from error
