"""A GGUF file turned once into a folder that ``from_pretrained`` reads fast.

**Dtype.** The blocks of a quantised file are unpacked in float32 and rounded once, to bfloat16. A 4-bit block
places values up to 3 % of the block's range away from the trained ones, an 8-bit block up to 0.4 %; rounding
moves a value by at most 0.4 % of itself, and the trained values were bfloat16 to begin with. float32 would
double the disk and the loading time to keep digits that mean nothing. (Unpacking straight into bfloat16 would
round three times: scale, product, sum.) A file of plain floats carries its digits for a reason: it is stored
in the smallest of bfloat16, float16, float32 that keeps every value exactly.

**Tokenizer.** transformers rebuilds it from the vocabulary in the file. The file only *names* how text is cut
into words before merging; the names that some supported version of transformers does not know are in
:data:`SPLITS`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outrider.errors import ModelError, PullError
from outrider.pull.gguf_header import Header, read_header
from outrider.pull.progress import Progress

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> the pattern text is cut by; "digits" cuts off each digit, then words as GPT-2 does.
SPLITS = {"smollm": "digits", "starcoder": "digits", "refact": "digits", "qwen2": _QWEN2}
# Models whose text is composed (NFC) before it is cut; the file does not say so.
COMPOSED = {"qwen2"}
# Tokens that end a turn or a text. The file names one of them; chat models may write any (llama.cpp's list).
ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
)


def convert(source: Path, folder: Path, progress: Progress) -> str:
    """Write ``source`` into ``folder`` as safetensors, configs and tokenizer; returns the dtype's name.

    Needs four bytes of memory per weight while it runs. Raises :class:`ModelError` for a file that is damaged
    or of a kind that transformers cannot read.
    """
    header = read_header(source)
    with progress.working("unpacking the weights (once; up to a minute)"), _quiet():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **where)
            model = AutoModelForCausalLM.from_pretrained(
                str(source.parent),
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                **where,
            )
        except (ValueError, KeyError, NotImplementedError, RuntimeError, ImportError, TypeError) as error:
            family = header.metadata.get("general.architecture", "unknown")
            raise ModelError(
                f"GGUF file {source.name!r} (architecture {family!r}) cannot be read by transformers",
                why=str(error).strip().split("\n")[0][:300],
                hint="Use the model's safetensors from the hub instead",
            ) from error
        dtype = _smallest(model, header)
        model.to(dtype)
        model.config.dtype = dtype
        _finish_tokenizer(tokenizer, header, model)
        _finish_generation(model, tokenizer)
        _save(model, tokenizer, folder)
    return str(dtype).removeprefix("torch.")


def _smallest(model: Any, header: Header) -> Any:
    import torch

    if header.quantised:
        return torch.bfloat16
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).to(p.dtype), p) for p in model.parameters()):
            return dtype
    return torch.float32


def _finish_tokenizer(tokenizer: Any, header: Header, model: Any) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    kind = header.metadata.get("tokenizer.ggml.pre", "")
    if header.metadata.get("tokenizer.ggml.model") == "gpt2" and kind in SPLITS:
        if SPLITS[kind] == "digits":
            cut: Any = pre_tokenizers.Digits(individual_digits=True)
        else:
            cut = pre_tokenizers.Split(Regex(SPLITS[kind]), behavior="isolated")
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[kind] == "digits")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
        if kind in COMPOSED:
            tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    # Not every version of transformers takes these from the file.
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= index < len(tokenizer):
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(int(index)))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the vocabulary of the GGUF file has {len(tokenizer)} tokens, its embedding {rows} rows",
            why="Tokens without a row cannot be read by the model",
            hint="Use the model's safetensors from the hub instead",
        )
    tokenizer.model_max_length = int(model.config.max_position_embeddings)


def _finish_generation(model: Any, tokenizer: Any) -> None:
    """All tokens that end a text, as the published generation configs list them; the file's is first."""
    named = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    special = tokenizer.added_tokens_decoder
    ends = [i for text in ENDS for i, token in special.items() if token.special and token.content == text]
    config = model.generation_config
    found = list(dict.fromkeys([*named, *ends]))
    config.eos_token_id = found[0] if len(found) == 1 else found or None
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    if config.pad_token_id is None and found:
        config.pad_token_id = found[-1]


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError

    from outrider.pull.download import FULL

    try:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk in its text only
        if not (getattr(error, "errno", None) in FULL or "os error 28" in str(error)):
            raise
        raise PullError(
            "the disk is full while writing the unpacked weights",
            hint="Make room and run the same command again: the download is kept",
        ) from error
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():  # safetensors writes for the owner alone; a cache may be shared
        file.chmod(0o666 & ~mask)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars from transformers: there is one already."""
    from transformers import modeling_gguf_pytorch_utils as older_loader
    from transformers.utils import logging

    was_on, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # The loader of most architectures takes tqdm directly and heeds no setting.
    bar: Any = getattr(older_loader, "tqdm", None)
    if bar is not None:
        older_loader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            older_loader.tqdm = bar
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()
