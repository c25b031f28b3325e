"""Pickles of torch.save's format whose tensors stay where they are: the pickle here, the bytes by the core, which writes them past the
page cache by several threads, at once or from a copy beside training (src/checkpoint/{save_job,zip_stream}.h).
"""
from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

# A part of a storage: its bytes, and a CPU tensor with them or what makes it when the writer gets there.
Part = tuple[int, Tensor | Callable[[], Tensor]]

_STORAGE_CLASSES = {torch.float64: "DoubleStorage", torch.float32: "FloatStorage", torch.float16: "HalfStorage",
                    torch.bfloat16: "BFloat16Storage", torch.int64: "LongStorage", torch.int32: "IntStorage", torch.int16: "ShortStorage",
                    torch.int8: "CharStorage", torch.uint8: "ByteStorage", torch.bool: "BoolStorage",
                    torch.complex64: "ComplexFloatStorage", torch.complex128: "ComplexDoubleStorage"}


class PlacedTensor:
    """A flat tensor whose elements stand in several places. In a file it is an ordinary tensor."""

    def __init__(self, dtype: torch.dtype, parts: Sequence[tuple[int, Tensor | Callable[[], Tensor]]]) -> None:
        """parts: (elements, a tensor of so many or what makes it), one behind the other."""
        self.dtype, self.numel = dtype, sum(numel for numel, _ in parts)
        self.parts: list[Part] = [(numel * dtype.itemsize, source) for numel, source in parts if numel > 0]


class _PlacedStorage:
    def __init__(self, tensor: PlacedTensor) -> None:
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    """torch.save's way of naming storages: ("storage", class, number, device, elements)."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[list[Part]] = []
        self._numbers: dict[int, tuple[int, Any]] = {}
        self._kept: list[Any] = []  # so that no second storage comes to stand at the address of a first

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, PlacedTensor):
            return torch._utils._rebuild_tensor_v2, (_PlacedStorage(value), 0, (value.numel,), (1,), False, OrderedDict())
        return NotImplemented

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _PlacedStorage):
            tensor = value.tensor
            return self._named(_STORAGE_CLASSES[tensor.dtype], self._add(tensor.parts), "cpu", tensor.numel)
        if isinstance(value, torch.storage.TypedStorage):
            return self._stored(value._untyped_storage, value.dtype)  # untyped() warns
        if isinstance(value, torch.UntypedStorage):
            return self._stored(value, None)
        return None

    def _stored(self, storage: torch.UntypedStorage, dtype: torch.dtype | None) -> tuple:
        known = self._numbers.get(storage._cdata)
        if known is None:
            known = self._numbers[storage._cdata] = (self._add(_parts_of(storage)), dtype)
            self._kept.append(storage)
        number, known_dtype = known
        if known_dtype != dtype:
            raise RuntimeError("tensors of different types that share memory cannot be saved: clone one of them")
        if dtype is not None and dtype not in _STORAGE_CLASSES:
            raise RuntimeError(f"tensors of {dtype} cannot be saved: dequantize them, or save their bytes")
        name = "UntypedStorage" if dtype is None else _STORAGE_CLASSES[dtype]
        return self._named(name, number, torch.serialization.location_tag(storage), storage.nbytes() // (dtype.itemsize if dtype else 1))

    def _add(self, parts: list[Part]) -> int:
        self.storages.append(parts)
        return len(self.storages) - 1

    @staticmethod
    def _named(kind: str, number: int, location: str, numel: int) -> tuple:
        return "storage", getattr(torch, kind), str(number), location, numel


def _parts_of(storage: torch.UntypedStorage) -> list[Part]:
    def whole() -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    if storage.nbytes() == 0:
        return []
    return [(storage.nbytes(), whole() if storage.device.type == "cpu" else lambda: whole().cpu())]


def pickled(value: Any) -> tuple[bytes, list[list[Part]]]:
    """The pickle, and the parts of each storage that it names by its number. Tensors must keep their values until they are written."""
    out = io.BytesIO()
    pickler = _Pickler(out)
    pickler.dump(value)
    return out.getvalue(), pickler.storages
