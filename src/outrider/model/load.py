"""From a name, a folder, a file or a model object to a ``LanguageModel`` and its tokenizer."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outrider.errors import ConfigError, ModelError, SpecError, nearest
from outrider.model import attention
from outrider.model.base import LanguageModel
from outrider.model.families import PROVEN, is_recurrent, refuse_by_name, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Loaded:
    """What ``load`` returns. ``tokenizer`` is None where the model has none: prompts are token ids then."""

    model: LanguageModel
    tokenizer: Any = None

    @property
    def hf(self) -> Any:
        """The transformers model underneath."""
        return getattr(self.model, "hf", self.model)

    @property
    def chat_template(self) -> bool:
        """Whether message lists can be turned into prompts."""
        return getattr(self.tokenizer, "chat_template", None) is not None


def wrap(hf: PreTrainedModel, name: str = "") -> LanguageModel:
    """A ``LanguageModel`` over ``hf`` as it is: its dtype, device and weights stay.

    Families outside ``families.PROVEN`` are compared with their own full forward first. Raises ``ModelError``
    naming the family and the remedy; the model is left as it was then.
    """
    from outrider.model.check import check
    from outrider.model.hf import HFModel
    from outrider.model.recurrent import RecurrentModel

    if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model"):
        hf = hf.get_base_model()  # the model itself, its linear layers carrying the adapter
    refuse_by_name(hf.config)
    with attention.restored_on_error(hf):
        try:
            if is_recurrent(hf.config):
                return RecurrentModel(hf, name)
            model = HFModel(hf, name)
        except (SpecError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"{name or type(hf).__name__} ({text_config(hf.config).model_type}) cannot be driven",
                why=f"Its first token failed with {type(error).__name__}: {str(error).strip()[:300]}",
                hint="Use one of the proven families (outrider.model.families.PROVEN), or report this one.",
            ) from error
        if not {model.family, hf.config.model_type} <= PROVEN:
            check(model)
    return model


def default_device() -> torch.device:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device | str) -> tuple[torch.dtype, str]:
    """(dtype, reason): bfloat16 where the machine multiplies it in hardware, float32 on other CPUs."""
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies bfloat16"
        return torch.float16, "the GPU has no bfloat16"
    if kind == "cpu":
        found = sorted(_cpu_flags() & {"amx_bf16", "avx512_bf16"})
        if found:
            return torch.bfloat16, f"the CPU multiplies bfloat16 ({', '.join(found)})"
        return torch.float32, "the CPU has no instructions for bfloat16 products"
    return torch.bfloat16, f"half the memory on {kind}"


def _cpu_flags() -> set[str]:
    """Instruction set flags of an x86 machine, empty where they cannot be read."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """``dtype`` as torch knows it; None and ``"auto"`` take ``default_dtype(device)``."""
    if dtype is None or dtype == "auto":
        return default_dtype(device)[0]
    if isinstance(dtype, torch.dtype):
        if dtype in _DTYPES.values():
            return dtype
        raise ConfigError(f"dtype {dtype} cannot hold activations", hint=nearest("", _DTYPES))
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ConfigError(f"dtype {dtype!r} is unknown", hint=nearest(str(dtype), [*_DTYPES, "auto"]))
    return found


def resolve_device(device: torch.device | str | None) -> torch.device:
    """``device`` as torch knows it; None and ``"auto"`` take the first of cuda, mps, cpu."""
    if device is None or device == "auto":
        return default_device()
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown", hint="Use cpu, cuda, cuda:1 or mps") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is not on this machine", hint="Use device='cpu'")
    return found


def load(
    model: Any,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    adapter: str | Path | None = None,
) -> Loaded:
    """A model ready to decode, and its tokenizer.

    ``model`` is a transformers model object (used as it is; moved or converted only when ``device`` or
    ``dtype`` is given), a local folder (a LoRA adapter's too), a ``.gguf`` file, or a name to pull.
    ``adapter`` is a LoRA folder to put on top. ``tokenizer`` is an object or a folder; by default the model's
    own, if it has one.

    Raises ``ConfigError`` for an unknown dtype or device, ``ModelError`` for what cannot be read or driven.
    """
    if not isinstance(model, str | Path):
        if device is not None or dtype not in (None, "auto"):
            target = resolve_device(device) if device is not None else model.device
            model = model.to(target, model.dtype if dtype in (None, "auto") else resolve_dtype(dtype, target))
        hf, name, folder = model, "", None
    else:
        from outrider.model import files

        place = resolve_device(device)
        number = resolve_dtype(dtype, place)
        name = str(model)
        folder = files.find(name, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        if files.is_adapter(folder):
            adapter, folder = folder, files.base_of(folder, allow_pickle, trust_remote_code)
        refuse_unloaded(folder)
        hf = files.read(folder, number, place, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if adapter is not None:
        from outrider.model import files

        hf = files.put_on(hf, Path(adapter))
    if tokenizer is None or isinstance(tokenizer, str | Path):
        from outrider.model import files

        source = Path(tokenizer) if tokenizer is not None else folder
        tokenizer = None if source is None else files.tokenizer(source, trust_remote_code)
    return Loaded(wrap(hf, name), tokenizer)


def refuse_unloaded(folder: Path) -> None:
    """``refuse_by_name`` from the configuration alone, before weights are read."""
    try:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except SpecError:
        raise
    except Exception:  # a family with its own code: judged once it is loaded
        return
    refuse_by_name(config)
