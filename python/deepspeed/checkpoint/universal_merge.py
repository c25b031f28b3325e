"""How the pieces of tensor-parallel ranks become one tensor. Pure: names and tensors in, tensors out.

The client describes its layout in the checkpoint, by patterns of parameter names (`universal_checkpoint_info`). Every other
parameter is cut along its first dimension.
"""
from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import (AFFINE_MAP, CAT_DIM, ORIGINAL_VOCAB_SIZE, PARAM_N_SUB_PARAMS,
                                            PARAMETER_TO_AVERAGE_PATTERNS, PARAMETER_WITH_2_SUB_PARAMS_CAT_DIM_0,
                                            PARAMETER_WITH_ROW_PARALLELISM_PATTERNS, PARAMETER_WITH_SUB_PARAMS, SUB_PARAM_SHAPE,
                                            SUB_PARAM_SHARD_WIDTHS, TP_REPLICATED_PARAMETER_PATTERNS, VOCAB_TENSOR,
                                            VOCABULARY_PARAMETER_PATTERNS)
from deepspeed.checkpoint.universal_checkpoint import SubparamShape

_LISTS = (TP_REPLICATED_PARAMETER_PATTERNS, PARAMETER_TO_AVERAGE_PATTERNS, PARAMETER_WITH_ROW_PARALLELISM_PATTERNS,
          VOCABULARY_PARAMETER_PATTERNS, PARAMETER_WITH_2_SUB_PARAMS_CAT_DIM_0)


class MergeRules:
    """The layout of one checkpoint. merge() may be called by several threads at once."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.sub_params = [SubparamShape(**described) for described in info.get(PARAMETER_WITH_SUB_PARAMS, [])]
        patterns = [pattern for key in _LISTS for pattern in info.get(key, [])]
        self.patterns = patterns + [pattern for shape in self.sub_params for pattern in shape.patterns]
        if info.get(AFFINE_MAP):
            raise CheckpointError(f"universal_checkpoint_info.{AFFINE_MAP}: layouts of automatic tensor parallelism cannot be converted here")

    def unmatched(self, names: list[str]) -> list[str]:
        """Patterns that no parameter has: a sign that they were written for another model."""
        return [pattern for pattern in self.patterns if not any(re.match(pattern, name) for name in names)]

    def _is(self, key: str, name: str) -> bool:
        found = [pattern for pattern in self.info.get(key, []) if re.match(pattern, name)]
        if len(found) > 1:
            raise CheckpointError(f"universal_checkpoint_info.{key}: {name} matches {len(found)} patterns: {found}")
        return bool(found)

    def merge(self, name: str, slices: list[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """The whole tensor, and what its file says beside it. `slices`: one shaped tensor per tensor-parallel rank."""
        value, beside = self._joined(name, slices)
        if self._is(VOCABULARY_PARAMETER_PATTERNS, name):
            value = value[:self.info[ORIGINAL_VOCAB_SIZE]].contiguous()
            beside[VOCAB_TENSOR] = True
        return value, beside

    def _joined(self, name: str, slices: list[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        if self._is(TP_REPLICATED_PARAMETER_PATTERNS, name):
            if not all(torch.equal(slices[0], other) for other in slices[1:]):
                raise CheckpointError(f"parameter {name} is listed as replicated ({TP_REPLICATED_PARAMETER_PATTERNS}), but its copies differ")
            return slices[0], {}
        if self._is(PARAMETER_TO_AVERAGE_PATTERNS, name):
            return (sum(slices[1:], slices[0]) / len(slices) if len(slices) > 1 else slices[0]), {}
        if self._is(PARAMETER_WITH_2_SUB_PARAMS_CAT_DIM_0, name):
            halves = [piece.chunk(2) for piece in slices]
            return torch.cat([half[part] for part in range(2) for half in halves]), {CAT_DIM: 0, PARAM_N_SUB_PARAMS: 2}
        for shape in self.sub_params:
            for pattern in shape.patterns:
                if re.match(pattern, name):
                    return self._several(name, pattern, shape, slices)
        dim = 1 if self._is(PARAMETER_WITH_ROW_PARALLELISM_PATTERNS, name) else 0
        if len(slices) > 1 and slices[0].dim() <= dim:
            raise CheckpointError(f"parameter {name} of shape {list(slices[0].shape)} has no dimension {dim} to join its {len(slices)} pieces "
                                  f"along: list it in universal_checkpoint_info.{TP_REPLICATED_PARAMETER_PATTERNS} if they are copies")
        return (torch.cat(slices, dim) if len(slices) > 1 else slices[0]), {CAT_DIM: dim}

    def _several(self, name: str, pattern: str, shape: SubparamShape, slices: list[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """A parameter that holds several, each of them cut: every rank has its piece of the first, of the second, ..."""
        dim, ranks = shape.partition_dim, len(slices)
        listed = shape.shape[dim]
        total = sum(piece.numel() for piece in slices)
        if isinstance(listed, int):  # their number
            along = sum(piece.shape[dim] for piece in slices)
            listed = (along // listed,) * listed
        widths = self.info.get(SUB_PARAM_SHARD_WIDTHS, {}).get(pattern)
        if widths is None:
            if any(size % ranks for size in listed):
                raise CheckpointError(f"parameter {name}: parts of sizes {list(listed)} are not divisible by {ranks} ranks, and the checkpoint "
                                      f"does not say how they were cut (universal_checkpoint_info.{SUB_PARAM_SHARD_WIDTHS})")
            widths = [[size // ranks] * ranks for size in listed]
        sizes = [sum(size) if isinstance(size, (tuple, list)) else size for size in shape.shape]
        sizes[dim] = sum(listed)
        known = torch.Size(size for size in sizes if size >= 0).numel()
        sizes = [total // known if size < 0 else size for size in sizes]
        pieces = [piece.reshape([sum(width[rank] for width in widths) if d == dim else size for d, size in enumerate(sizes)])
                  for rank, piece in enumerate(slices)]
        parts = [piece.split([width[rank] for width in widths], dim) for rank, piece in enumerate(pieces)]
        whole = torch.cat([part[number] for number in range(len(listed)) for part in parts], dim)
        described = list(shape.shape)
        described[dim] = tuple(listed)
        return whole, {SUB_PARAM_SHAPE: SubparamShape(list(shape.patterns), tuple(described), dim)}
