"""The header of a GGUF file, read without its data: enough to see that the file is whole.

Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from outrider.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOATS = {"F32", "F16", "BF16", "F64"}
_MAX_DIMS = 8


@dataclass(frozen=True)
class Header:
    """``metadata``: scalars and strings, arrays as their length. ``types``: ggml type by tensor."""

    metadata: dict[str, Any]
    types: dict[str, str]

    @property
    def quantised(self) -> bool:
        """Whether any tensor is stored in blocks rather than as plain floats."""
        return any(kind not in _FLOATS for kind in self.types.values())


def read_header(path: str | Path) -> Header:
    """Parse the header and check that every tensor ends inside the file.

    Raises :class:`ModelError` when the file is no GGUF, is damaged, or ends early (with how much is missing).
    """
    path = Path(path)
    size = path.stat().st_size
    if size < 24:
        raise _damaged(path, f"it is only {size} bytes long")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ModelError(f"{path.name!r} is not a GGUF file", why="It does not begin with the letters GGUF")
        try:
            return _parse(_Reader(data), path, size)
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise _damaged(path, "the header runs past the end of the file or makes no sense") from error


def _parse(reader: _Reader, path: Path, size: int) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    version, tensor_count, key_count = reader.unpack("IQQ")
    if version not in (2, 3):
        raise ModelError(f"{path.name!r} is GGUF version {version}", why="Versions 2 and 3 can be read")
    if tensor_count > size or key_count > size:
        raise _damaged(path, f"it claims {tensor_count} tensors and {key_count} keys")
    metadata = {}
    for _ in range(key_count):
        key = reader.string()
        metadata[key] = reader.value(reader.unpack("I")[0])
    tensors = []
    for _ in range(tensor_count):
        name = reader.string()
        (dims,) = reader.unpack("I")
        if dims > _MAX_DIMS:
            raise _damaged(path, f"tensor {name!r} claims {dims} dimensions")
        shape, (kind, offset) = reader.unpack("Q" * dims), reader.unpack("IQ")
        tensors.append((name, prod(shape), kind, offset))
    alignment = int(metadata.get("general.alignment", 32)) or 32
    start = -(-reader.position // alignment) * alignment
    types = {}
    for name, count, kind, offset in tensors:
        try:
            ggml = GGMLQuantizationType(kind)
        except ValueError as error:
            raise _damaged(path, f"tensor {name!r} has the unknown type {kind}") from error
        block, width = GGML_QUANT_SIZES[ggml]
        end = start + offset + count // block * width
        if end > size:
            raise _damaged(path, f"tensor {name!r} ends at byte {end}, the file at {size}")
        types[name] = ggml.name
    if not types:
        raise ModelError(f"{path.name!r} holds no tensors", why="It is a vocabulary only, or one part of several")
    return Header(metadata, types)


class _Reader:
    """Little-endian values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 4

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def string(self, keep: bool = True) -> str:
        (length,) = self.unpack("Q")
        begin, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise IndexError("string past the end")
        return self.data[begin : self.position].decode("utf-8") if keep else ""

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.unpack(_scalar(kind))[0]
        inner, count = self.unpack("IQ")
        if inner == _STRING:  # the vocabulary: its content is transformers' business
            for _ in range(count):
                self.string(keep=False)
        elif inner == _ARRAY:
            for _ in range(count):
                self.value(_ARRAY)
        else:
            self.position += count * struct.calcsize("<" + _scalar(inner))
        return count


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise IndexError(f"unknown value type {kind}")
    return _SCALARS[kind]


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(
        f"GGUF file {path.name!r} is truncated or damaged",
        why=why[0].upper() + why[1:],
        hint="Fetch it again, or compare its sha256 with the source's",
    )
