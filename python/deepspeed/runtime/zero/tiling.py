"""A linear layer cut into a grid of small ones, so that at any time only one tile's weight is gathered."""
from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from deepspeed.runtime.utils import partition_uniform


def split_tensor_along_last_dim(tensor: Tensor, partitions: Sequence[int]) -> tuple[Tensor, ...]:
    """The pieces of a tensor between consecutive boundaries of its last dimension."""
    return torch.split(tensor, [end - begin for begin, end in zip(partitions, partitions[1:])], dim=-1)


class TiledLinear(nn.Module):
    """nn.Linear(in_features, out_features) as out_splits x in_splits tiles, each a `linear_cls`.

    The tiles of one output range are added; the last of them has the bias. Outputs are concatenated unless
    combine_out_splits is false (then a list). input_is_already_split: forward gets a list of pieces.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, in_splits: int = 1, out_splits: int = 1,
                 input_is_already_split: bool = False, combine_out_splits: bool = True, linear_cls: type = nn.Linear,
                 init_linear: nn.Linear | None = None, **kwargs: Any) -> None:
        super().__init__()
        for name, splits, features in (("in_splits", in_splits, in_features), ("out_splits", out_splits, out_features)):
            if not 1 <= splits <= features:
                raise RuntimeError(f"{name} must be in range [1, {name[:-7]}_features = {features}], got {splits}")
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.in_splits, self.out_splits = in_splits, out_splits
        self.input_is_already_split, self.combine_out_splits = input_is_already_split, combine_out_splits
        self.in_parts = partition_uniform(in_features, in_splits)
        self.out_parts = partition_uniform(out_features, out_splits)
        self.linears = nn.ModuleList()
        for row in range(out_splits):
            tiles = nn.ModuleList()
            for column in range(in_splits):
                tiles.append(linear_cls(self.in_parts[column + 1] - self.in_parts[column], self.out_parts[row + 1] - self.out_parts[row],
                                        bias=bias and column == in_splits - 1, **kwargs))
            self.linears.append(tiles)
        if init_linear is not None:
            self.copy_params_from(init_linear)

    def forward(self, input_: Tensor | Sequence[Tensor]) -> Any:
        pieces = self._split_input(input_)
        outputs = [self._row(tiles, pieces) for tiles in self.linears]
        return self._combine_output_splits(outputs) if self.combine_out_splits else outputs

    def _split_input(self, input_: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        if self.in_splits == 1:
            return [input_] if isinstance(input_, Tensor) else list(input_)
        if self.input_is_already_split:
            if len(input_) != self.in_splits:
                raise AssertionError(f"forward got {len(input_)} input pieces, in_splits is {self.in_splits}")
            return input_
        return split_tensor_along_last_dim(input_, self.in_parts)

    def _row(self, tiles: nn.ModuleList, pieces: Sequence[Tensor]) -> Any:
        total = None
        for tile, piece in zip(tiles, pieces):
            total = self._reduce_local_output(tile(piece), total)
        return total

    def _reduce_local_output(self, new_out: Tensor, current_out: Tensor | None) -> Tensor:
        return new_out.clone() if current_out is None else current_out + new_out

    def _combine_output_splits(self, outputs: Sequence[Tensor]) -> Tensor:
        return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)

    @torch.no_grad()
    def copy_params_from(self, other: nn.Linear) -> None:
        """Takes over weight and bias of a linear layer of the same size."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        if not hasattr(other, "weight") or tuple(getattr(other.weight, "ds_shape", other.weight.shape)) != (self.out_features, self.in_features):
            raise AssertionError(f"copy_params_from needs a layer with weight [{self.out_features}, {self.in_features}]")
        if self.use_bias:
            if getattr(other, "bias", None) is None:
                raise AssertionError("this layer has a bias, the other one does not")
        with GatheredParameters([other.weight, other.bias]):
            for row, tiles in enumerate(self.linears):
                rows = slice(self.out_parts[row], self.out_parts[row + 1])
                for column, tile in enumerate(tiles):
                    with GatheredParameters([tile.weight, tile.bias], modifier_rank=0):
                        tile.weight.copy_(other.weight[rows, self.in_parts[column]:self.in_parts[column + 1]])
                        if tile.bias is not None:
                            tile.bias.copy_(other.bias[rows])


class TiledLinearReturnBias(TiledLinear):
    """For linear classes that return (output, bias): outputs are combined, biases concatenated."""

    def _reduce_local_output(self, new_out: Any, current_out: Any) -> Any:
        output, bias = new_out if isinstance(new_out, tuple) else (new_out, None)
        if current_out is None:
            return output.clone(), bias
        return current_out[0] + output, bias if bias is not None else current_out[1]

    def _combine_output_splits(self, outputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        biases = [bias for _, bias in outputs if bias is not None]
        return super()._combine_output_splits([output for output, _ in outputs]), super()._combine_output_splits(biases) if biases else None
