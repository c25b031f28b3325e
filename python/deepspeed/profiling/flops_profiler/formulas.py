"""How many floating-point operations (flops) and multiply-accumulates (macs) one call takes.

Each formula gets what the call returned, then the call's own arguments, and returns (flops, macs). They are the usual ones: a
multiply-accumulate is two operations; what no matrix does is estimated per element. They look at shapes alone, so they hold for any
dtype and device, and for results that are computed lazily.
"""
from __future__ import annotations

import math
from typing import Any, Sequence

import torch.nn as nn
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Cost = tuple[int, int]

NORM_PER_ELEMENT, NORM_PER_ELEMENT_AFFINE = 4, 5
_GATES = {nn.RNN: 1, nn.RNNCell: 1, nn.GRU: 3, nn.GRUCell: 3, nn.LSTM: 4, nn.LSTMCell: 4}
# What joins the gates, in operations per hidden element: RNN adds two products; GRU has 1 product for r, 3 sums, 3 for the mixture; LSTM has
# 4 sums, 3 for the cell state and 3 for the output.
_JOINING = {1: 1, 3: 7, 4: 10}


def linear(_out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Cost:
    """y = x W^T + b; the sum with b is part of the accumulation."""
    macs = input.numel() * weight.shape[0]
    return 2 * macs, macs


def matmul(out: Tensor, input: Tensor, *_: Any, **__: Any) -> Cost:
    """Any product whose inner dimension is the last one of `input`, broadcast or not."""
    macs = out.numel() * input.shape[-1]
    return 2 * macs, macs


def addmm(out: Tensor, input: Tensor, mat1: Tensor, *_: Any, **__: Any) -> Cost:
    """A product and the sum with `input`."""
    macs = out.numel() * mat1.shape[-1]
    return 2 * macs + out.numel(), macs


def convolution(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Cost:
    """weight: (channels out, channels in / groups, *kernel). Each element of the result is a product over one filter."""
    macs = out.numel() * math.prod(weight.shape[1:])
    return 2 * macs + (out.numel() if bias is not None else 0), macs


def transposed_convolution(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Cost:
    """weight: (channels in, channels out / groups, *kernel). Each element of the input is spread over one filter."""
    macs = input.numel() * math.prod(weight.shape[1:])
    return 2 * macs + (out.numel() if bias is not None else 0), macs


def attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Cost:
    """q k^T, then its product with v, over all positions: masks save nothing here, and the softmax is left out.

    query (..., L, E), key (..., S, E), value (..., S, V), result (..., L, V)."""
    positions = key.shape[-2]
    macs = query.numel() * positions + out.numel() * positions
    return 2 * macs, macs


def per_element(_out: Any, input: Tensor, *_: Any, **__: Any) -> Cost:
    """Activations, softmax and pooling: one operation for each element that goes in."""
    return input.numel(), 0


def per_result(out: Any, *_: Any, **__: Any) -> Cost:
    """Sums and products of tensors, interpolation: one operation for each element that comes out."""
    return out.numel() if isinstance(out, Tensor) else 1, 0


def layer_norm(_out: Tensor, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, **__: Any) -> Cost:
    return _norm(input, weight)


def group_norm(_out: Tensor, input: Tensor, num_groups: int, weight: Tensor | None = None, *_: Any, **__: Any) -> Cost:
    return _norm(input, weight)


def instance_norm(_out: Tensor, input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Tensor | None = None,
                  *_: Any, **__: Any) -> Cost:
    return _norm(input, weight)


def batch_norm(_out: Tensor, input: Tensor, running_mean: Any, running_var: Any, weight: Tensor | None = None, bias: Tensor | None = None,
               training: bool = False, *_: Any, **__: Any) -> Cost:
    """With running statistics it is a subtraction folded into a product, and a product with the weight."""
    if training:
        return _norm(input, weight)
    return input.numel() * (1 if weight is None else 2), 0


def _norm(input: Tensor, weight: Tensor | None) -> Cost:
    """An estimate: mean, variance, difference, quotient, and the affine part."""
    return input.numel() * (NORM_PER_ELEMENT if weight is None else NORM_PER_ELEMENT_AFFINE), 0


# ---------------------------------------------------------------- einsum

def einsum(_out: Tensor, equation: Any, *operands: Any) -> Cost:
    """The cheapest order of pairwise contractions, as numpy.einsum_path finds it; each takes the product of its index sizes, twice where
    an index is summed over. Macs are the half of the summing ones."""
    equation, tensors = _spelled(equation, operands)
    inputs, output, sizes = _named_indices(equation.replace(" ", ""), [tensor.shape for tensor in tensors])
    flops = macs = 0
    for contracted in _path(inputs, output, sizes):
        taken = [inputs[index] for index in contracted]
        rest = [names for index, names in enumerate(inputs) if index not in contracted]
        involved = set().union(*taken)
        kept = involved & (set(output).union(*rest))
        size = math.prod(sizes[name] for name in involved)
        sums = kept != involved
        flops += size * (max(1, len(taken) - 1) + sums)
        macs += size if sums and len(taken) > 1 else 0
        inputs = [*rest, frozenset(kept)]
    return flops, macs


def _spelled(equation: Any, operands: Sequence[Any]) -> tuple[str, Sequence[Tensor]]:
    """The call as equation and tensors: torch also takes (tensor, indices, tensor, indices, ..., [indices of the result])."""
    if isinstance(equation, str):
        return equation, operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    listed = [equation, *operands]
    tensors, indices = listed[0:len(listed) // 2 * 2:2], listed[1::2]
    terms = ["".join("..." if index is Ellipsis else chr(ord("A") + index) for index in term)
             for term in (indices if len(listed) % 2 == 0 else [*indices, listed[-1]])]
    left = ",".join(terms[:len(tensors)])
    return f"{left}->{terms[-1]}" if len(listed) % 2 else left, tensors


def _named_indices(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[frozenset[str]], frozenset[str], dict[str, int]]:
    """Index names of each operand and of the result, and their sizes. The dimensions of "..." are called 0, 1, ... from the last one."""
    left, arrow, right = equation.partition("->")
    terms, sizes, inputs = left.split(","), {}, []
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        unnamed = len(shape) - len(before) - len(after) if dots else 0
        names = [*before, *(str(unnamed - 1 - position) for position in range(unnamed)), *after]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), size)
        inputs.append(frozenset(names))
    unnamed_ones = frozenset(name for name in sizes if name.isdigit())
    if arrow:
        return inputs, frozenset(right.replace("...", "")) | (unnamed_ones if "..." in right else frozenset()), sizes
    once = frozenset(name for name in left if name.isalpha() and left.count(name) == 1)
    return inputs, once | unnamed_ones, sizes


def _path(inputs: list[frozenset[str]], output: frozenset[str], sizes: dict[str, int]) -> list[tuple[int, ...]]:
    """Which operands are contracted together, step by step; a result joins the end of the list."""
    if len(inputs) <= 2:
        return [tuple(range(len(inputs)))]
    import numpy as np
    letters = {name: chr(ord("a") + index) if index < 26 else chr(ord("A") + index - 26) for index, name in enumerate(sorted(sizes))}
    spelled = ["".join(letters[name] for name in sorted(names)) for names in inputs]
    dummies = [np.broadcast_to(np.float32(0), [sizes[name] for name in sorted(names)]) for names in inputs]  # no memory
    result = "".join(letters[name] for name in sorted(output))
    # The exhaustive search grows with the factorial of the operands.
    return np.einsum_path(f"{','.join(spelled)}->{result}", *dummies, optimize="optimal" if len(inputs) <= 6 else "greedy")[0][1:]


# ---------------------------------------------------------------- recurrent modules

def recurrent(module: nn.RNNBase | nn.RNNCellBase, input: Tensor | PackedSequence) -> Cost:
    """A recurrent module over its whole input, from its sizes (its weights may be sharded). For each element of a batch and step, layer
    and direction: gates x inputs and gates x state (an n-term sum has n products and n - 1 sums), biases, and what joins the gates."""
    data = input.data if isinstance(input, PackedSequence) else input
    steps = data.numel() // data.shape[-1]
    gates = _GATES[type(module)]
    hidden, bias = module.hidden_size, module.bias
    layers, directions = getattr(module, "num_layers", 1), 2 if getattr(module, "bidirectional", False) else 1
    state = getattr(module, "proj_size", 0) or hidden
    flops = macs = 0
    for layer in range(layers):
        width = module.input_size if layer == 0 else state * directions
        products = gates * hidden * (width + state)
        flops += 2 * products - 2 * gates * hidden + _JOINING[gates] * hidden + (2 * gates * hidden if bias else 0)
        macs += products
        if state != hidden:
            flops += (2 * hidden - 1) * state
            macs += hidden * state
    return flops * steps * directions, macs * steps * directions


def is_recurrent(module: nn.Module) -> bool:
    """Whether recurrent() knows this module. Of exactly these classes: a subclass may compute something else."""
    return type(module) in _GATES
