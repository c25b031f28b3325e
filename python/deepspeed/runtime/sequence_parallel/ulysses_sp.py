"""Ulysses for models of Transformers.

Every rank of a group holds 1/P of each sequence. Around attention they exchange: [batch, heads, length/P, size] becomes [batch, heads/P,
length, size] and back, so any attention function that Transformers knows computes whole sequences. Everything else in a model works
token by token and needs only the tokens' positions, which travel in position_ids.
"""
from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from deepspeed import comm
from deepspeed._lazy import not_built, not_built_class
from deepspeed.runtime.sequence_parallel.parallel_state_sp import SequenceParallelUnit, initialize_sequence_parallel

_TILED = "computing long sequences in tiles"
SequenceTiledCompute = not_built_class(f"{__name__}.SequenceTiledCompute", _TILED)
TiledMLP = not_built_class(f"{__name__}.TiledMLP", _TILED)
TiledFusedLogitsLoss = not_built_class(f"{__name__}.TiledFusedLogitsLoss", _TILED)
sequence_tiled_compute = not_built(f"{__name__}.sequence_tiled_compute", _TILED)

_IGNORED_LABEL = -100
# Masks of a whole sequence: eager attention adds a dense one, flex attention needs one that is built for all tokens.
_NEED_MASKS = ("eager", "paged|eager", "flex_attention")


def _exchange(values: Tensor, group: Any, cut: int, join: int) -> Tensor:
    """Piece i along `cut` goes to rank i; the pieces that arrive are joined along `join` in rank order."""
    pieces = torch.stack(values.chunk(dist.get_world_size(group), dim=cut))
    arrived = torch.empty_like(pieces)
    comm.all_to_all_single(arrived, pieces, group=group)
    return torch.cat(arrived.unbind(0), dim=join)


class _Exchange(torch.autograd.Function):
    """The gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any, cut: int, join: int) -> Tensor:
        ctx.way = (group, cut, join)
        return _exchange(values, group, cut, join)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        group, cut, join = ctx.way
        return _exchange(grad, group, join, cut), None, None, None


class UlyssesSPAttentionHF(torch.nn.Module):
    """An attention function of Transformers over sequences that the ranks of `process_group` share.

    attn: the function that computes attention over whole sequences. The sizes are the model's. disable_in_eval: modules in evaluation
    mode get sequences that are not shared. core_attn_implementation: attn's name in Transformers, which says whether it reads
    positions (the flash attentions) or knows plain causal attention only.
    """

    def __init__(self, attn: Callable, batch_size: int, attn_head_count: int, attn_head_size: int, kv_head_count: int, num_hidden_layers: int,
                 process_group: Any, seq_length_is_variable: bool = False, local_seq_length: int | None = None,
                 global_seq_length: int | None = None, disable_in_eval: bool = False, core_attn_implementation: str | None = None) -> None:
        super().__init__()
        self.core_attn_implementation = core_attn_implementation or getattr(attn, "__name__", type(attn).__name__)
        self._found_plain: tuple[weakref.ref, int] | None = None
        self.attn, self.process_group, self.disable_in_eval = attn, process_group, disable_in_eval
        self.world_size = size = dist.get_world_size(process_group)
        self.attn_head_count, self.kv_head_count, self.attn_head_size = attn_head_count, kv_head_count, attn_head_size
        self.local_seq_length = None if seq_length_is_variable else local_seq_length
        if attn_head_count % size != 0:
            raise ValueError(f"sequence parallelism over {size} ranks needs a number of attention heads that {size} divides, found {attn_head_count}")
        if kv_head_count % size != 0 and size % kv_head_count != 0:
            raise ValueError(f"sequence parallelism over {size} ranks needs a number of key and value heads that divides {size} or is divided "
                             f"by it, found {kv_head_count}")

    def forward(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any,
                **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if self.disable_in_eval and not module.training:
            return self.attn(module, query, key, value, attention_mask, *args, **kwargs)
        self._check(query)
        own = kwargs.get("position_ids")
        kwargs["position_ids"] = positions = self._all_positions(own)
        length = query.shape[2] * self.world_size
        self._check_pattern(module, kwargs, length)
        self._check_positions(own, positions, query.shape[0], length)
        query, key, value = (_Exchange.apply(heads, self.process_group, 1, 2) for heads in (query, self._enough(key), self._enough(value)))
        # A mask would be of this rank's tokens only; causal attention over all of them follows from their positions.
        output, weights = self._with_local_groups(module, query, key, value, args, kwargs)
        return _Exchange.apply(output, self.process_group, 1, 2), weights

    def _check(self, query: Tensor) -> None:
        if self.local_seq_length is not None and query.shape[2] != self.local_seq_length:
            raise ValueError(f"sequence parallelism was set up for {self.local_seq_length} tokens on each rank, found {query.shape[2]}: "
                             "set seq_length_is_variable=True")

    def _reads_positions(self) -> bool:
        return "flash" in self.core_attn_implementation

    def _check_pattern(self, module: torch.nn.Module, kwargs: dict, length: int) -> None:
        """No mask is passed on: other functions than the flash attentions then attend to all earlier tokens, padding included."""
        if self._reads_positions():
            return
        name, window, causal = self.core_attn_implementation, kwargs.get("sliding_window"), kwargs.get("is_causal")
        if window is not None and window < length:
            raise ValueError(f"sequence parallelism with '{name}' cannot limit attention to sliding_window = {window} of {length} tokens: no rank has "
                             "the mask of a whole sequence. Use a flash attention (attn_implementation and core_attn_implementation), or set "
                             "sliding_window to None in the model's configuration")
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            raise ValueError(f"sequence parallelism with '{name}' computes causal attention only, found is_causal = False in {type(module).__name__}: "
                             "use a flash attention (attn_implementation and core_attn_implementation), with sequences that have no padding")

    def _check_positions(self, own: Tensor, positions: Tensor, rows: int, length: int) -> None:
        """positions: of all ranks' tokens, so that all ranks refuse alike."""
        if self._reads_positions() and rows == 1:  # restarts separate the sequences of a packed row
            return
        version = None if own.is_inference() else own._version
        # Reading them waits for the device: once for all layers, which get the same tensor.
        if self._found_plain is not None and version is not None and self._found_plain[0]() is own and self._found_plain[1] == version:
            return
        counted = torch.arange(length, device=positions.device)
        if positions.dim() != 2 or positions.shape[1] != length or not bool((positions == counted).all()):
            raise ValueError(f"sequence parallelism with '{self.core_attn_implementation}' and {rows} sequences at once needs position_ids that count "
                             f"0 to {length - 1} over the ranks in every row, found {_excerpt(positions, counted)}: packed sequences, left padding and pieces "
                             "with positions of their own would get wrong attention. Use a flash attention (attn_implementation and "
                             "core_attn_implementation) with one sequence or packed row at a time")
        self._found_plain = None if version is None else (weakref.ref(own), version)

    def _all_positions(self, positions: Tensor | None) -> Tensor:
        if positions is None:
            raise ValueError("sequence parallelism needs position_ids in every forward: a rank's own tokens do not say where they stand. "
                             "Use UlyssesSPDataLoaderAdapter, or add them to the batch")
        gathered = [torch.empty_like(positions) for _ in range(self.world_size)]
        comm.all_gather(gathered, positions.contiguous(), group=self.process_group)
        return torch.cat(gathered, dim=1)

    def _enough(self, heads: Tensor) -> Tensor:
        """With fewer key and value heads than ranks, several ranks get the same one."""
        return heads.repeat_interleave(max(1, self.world_size // self.kv_head_count), dim=1)

    def _with_local_groups(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, args: tuple, kwargs: dict) -> Any:
        """Attention functions take from the module how many query heads share a key head: it is another number on one rank."""
        found = getattr(module, "num_key_value_groups", None)
        if found is None:
            return self.attn(module, query, key, value, None, *args, **kwargs)
        module.num_key_value_groups = query.shape[1] // key.shape[1]
        try:
            return self.attn(module, query, key, value, None, *args, **kwargs)
        finally:
            module.num_key_value_groups = found

    @classmethod
    def register_with_transformers(cls, model_name_or_path: Any, core_attn_implementation: str, sequence_parallel_size: int,
                                   micro_batch_size: int, seq_length: int | None = None, seq_length_is_variable: bool = True,
                                   disable_in_eval: bool = False) -> SequenceParallelUnit | None:
        """Puts itself in the place of an attention implementation of Transformers, for every model that uses it. Collective.

        Returns what initialize(mpu=) takes; None when one rank holds whole sequences. model_name_or_path: a model, or a name or folder.
        """
        if sequence_parallel_size == 1:
            return None
        if not seq_length_is_variable and seq_length is None:
            raise ValueError("seq_length must be the length of all sequences where seq_length_is_variable is False, found None")
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        config = _config_of(model_name_or_path, core_attn_implementation)
        _check_implementation(core_attn_implementation, ALL_ATTENTION_FUNCTIONS)
        unit = initialize_sequence_parallel(sequence_parallel_size)
        known = ALL_ATTENTION_FUNCTIONS[core_attn_implementation]
        heads = config.num_attention_heads
        made = cls(attn=known.attn if isinstance(known, cls) else known, batch_size=micro_batch_size, attn_head_count=heads,
                   attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
                   kv_head_count=getattr(config, "num_key_value_heads", None) or heads, num_hidden_layers=config.num_hidden_layers,
                   process_group=unit.get_sequence_parallel_group(), seq_length_is_variable=seq_length_is_variable,
                   local_seq_length=None if seq_length is None else seq_length // sequence_parallel_size, global_seq_length=seq_length,
                   disable_in_eval=disable_in_eval, core_attn_implementation=core_attn_implementation)
        ALL_ATTENTION_FUNCTIONS[core_attn_implementation] = made
        return unit


def _excerpt(positions: Tensor, counted: Tensor) -> str:
    """The first row that is not `counted`."""
    if positions.dim() != 2 or positions.shape[1] != len(counted):
        return f"the shape {tuple(positions.shape)}"
    number = int((positions != counted).any(dim=1).nonzero()[0])
    row, first = positions[number], int((positions[number] != counted).nonzero()[0])
    return f"{int(row[first])} at token {first} of row {number}"


def _config_of(model: Any, implementation: str) -> Any:
    """The configuration of the text part. A loaded model must use the implementation that is about to be replaced."""
    if not hasattr(model, "config"):
        from transformers import AutoConfig
        return AutoConfig.from_pretrained(model).get_text_config()
    used = getattr(model.config, "_attn_implementation", None)
    if used is not None and used != implementation:
        raise ValueError(f"core_attn_implementation is '{implementation}', but the model uses attn_implementation='{used}': set both to the same")
    return model.config.get_text_config()


def _check_implementation(name: str, known: Any) -> None:
    if name in _NEED_MASKS:
        raise ValueError(f"core_attn_implementation '{name}' needs a mask of the whole sequence, which no rank has: use 'sdpa' or a flash attention")
    if name not in known:
        raise ValueError(f"core_attn_implementation '{name}' is not known to Transformers: use one of {', '.join(known.valid_keys())}")


class UlyssesSPDataLoaderAdapter:
    """Batches whose sequences are shared: of every batch of every rank of the group, each rank gets its piece.

    Of P batches that the ranks' loaders give come P batches that all ranks compute together, one after another. Tensors are cut along
    dimension 1 and moved to `device`. labels become shift_labels, the token that follows each one; a token's successor may be on the
    next rank. Every rank's loader must give the same number of batches.
    """

    def __init__(self, dl: Any, sp_rank: int, sp_group: Any, sp_world_size: int, device: Any) -> None:
        self.dl, self.sp_rank, self.sp_group, self.sp_world_size, self.device = dl, sp_rank, sp_group, sp_world_size, device
        self._loaded: Iterator = iter(dl)
        self._ready: deque[dict] = deque()
        self._count = 0  # batches of this epoch that the loader gave

    def __len__(self) -> int:
        return len(self.dl) * self.sp_world_size

    def __iter__(self) -> UlyssesSPDataLoaderAdapter:
        return self

    def __next__(self) -> dict:
        if not self._ready:
            self._refill()
        return self._ready.popleft()

    def _refill(self) -> None:
        batch = self._load()
        gathered: list[Any] = [None] * self.sp_world_size
        # None is the mark of an ended loader. It travels too: a rank that kept it to itself would leave the others waiting.
        dist.all_gather_object(gathered, (self._count, batch), group=self.sp_group)
        ended = [batch is None for _, batch in gathered]
        if any(ended):
            counts = [count for count, _ in gathered]
            self._loaded, self._count = iter(self.dl), 0  # for the next epoch
            if not all(ended):
                raise ValueError(self._uneven(ended, counts))
            raise StopIteration
        self._ready.extend(self._my_piece(one) for _, one in gathered)

    def _load(self) -> dict | None:
        try:
            batch = dict(next(self._loaded))
        except StopIteration:
            return None
        self._count += 1
        if "position_ids" not in batch:  # as Transformers counts where a batch does not say it
            length = batch["input_ids"].shape[1]
            batch["position_ids"] = torch.arange(length).expand(batch["input_ids"].shape[0], length)
        return {key: value.cpu().contiguous() if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _uneven(self, ended: list[bool], counts: list[int]) -> str:
        ranks = dist.get_process_group_ranks(self.sp_group)
        early = ", ".join(f"rank {rank} after {count}" for rank, count, over in zip(ranks, counts, ended) if over)
        others = ", ".join(f"rank {rank} gave {count}" for rank, count, over in zip(ranks, counts, ended) if not over)
        return (f"ranks that share sequences need loaders with the same number of batches, but those ended: {early}; and {others} and may have more. "
                "Give every rank's loader as many batches, for instance by a DistributedSampler with drop_last=True")

    def _my_piece(self, batch: dict) -> dict:
        length, parts = batch["input_ids"].shape[1], self.sp_world_size
        if length % parts != 0:
            raise ValueError(f"sequence parallelism over {parts} ranks needs batches whose length {parts} divides, found {length}: pad to a "
                             f"multiple of {parts}")
        _check_padding(batch)
        if "labels" in batch:
            batch["shift_labels"] = F.pad(batch.pop("labels"), (0, 1), value=_IGNORED_LABEL)[:, 1:]
        mine = slice(length // parts * self.sp_rank, length // parts * (self.sp_rank + 1))
        return {key: value[:, mine].contiguous().to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _check_padding(batch: dict) -> None:
    """No mask reaches attention. Padding on the right needs none, as causal attention does not look ahead; on the left only positions tell of it."""
    mask, positions = batch.get("attention_mask"), batch["position_ids"]
    if mask is None or mask.dim() != 2 or not bool((mask[:, 1:] > mask[:, :-1]).any()):
        return
    if bool((positions == torch.arange(positions.shape[-1])).all()):
        raise ValueError("sequence parallelism computes attention without attention_mask, found one with zeros before ones (padding on the left) and "
                         f"position_ids that count it, 0 to {positions.shape[-1] - 1}: pad on the right (padding_side='right'), or use a flash attention "
                         "and add position_ids that start at 0 where a sequence starts")
