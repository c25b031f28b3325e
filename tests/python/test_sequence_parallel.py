"""Ulysses: ranks that share sequences train as one rank with whole sequences does."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from common import run_ranks, single_rank
from models import config

LENGTH, VOCABULARY, RATE = 12, 64, 0.5


class Attention(torch.nn.Module):
    """What an attention function of Transformers asks of a module."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def causal(module, query, key, value, mask, **_):
    key, value = (heads.repeat_interleave(module.num_key_value_groups, dim=1) for heads in (key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None


def body_attention(kv_heads: int):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    assert initialize_sequence_parallel(2) is unit  # for a second model
    rank, heads, size = unit.get_sequence_parallel_rank(), 4, 8
    torch.manual_seed(3)
    whole = [torch.randn(2, count, LENGTH, size, requires_grad=True) for count in (heads, kv_heads, kv_heads)]
    module = Attention(heads // kv_heads)
    expected, _ = causal(module, *whole, None)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    attention = UlyssesSPAttentionHF(attn=causal, batch_size=2, attn_head_count=heads, attn_head_size=size, kv_head_count=kv_heads,
                                     num_hidden_layers=1, process_group=unit.get_sequence_parallel_group(), seq_length_is_variable=True)
    mine = slice(LENGTH // 2 * rank, LENGTH // 2 * (rank + 1))
    pieces = [part.detach()[:, :, mine].clone().requires_grad_() for part in whole]
    positions = torch.arange(LENGTH)[mine].expand(2, -1)
    output, _ = attention(module, *pieces, None, position_ids=positions)
    torch.testing.assert_close(output, expected[:, mine])
    (output * weights[:, mine]).sum().backward()
    for piece, part in zip(pieces, whole):
        torch.testing.assert_close(piece.grad, part.grad[:, :, mine])
    assert module.num_key_value_groups == heads // kv_heads
    with pytest.raises(ValueError, match="needs position_ids"):
        attention(module, *pieces, None)


@pytest.mark.parametrize("kv_heads", (4, 2, 1))
def test_attention_over_shared_sequences_equals_attention_over_whole_ones(kv_heads):
    run_ranks(body_attention, 2, {"kv_heads": kv_heads})


def llama():
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    torch.manual_seed(1)
    shape = transformers.LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                     num_key_value_heads=2, max_position_embeddings=LENGTH, attn_implementation="sdpa")
    return transformers.LlamaForCausalLM(shape)


def tokens(count: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(5))


def stage_config(stage: int) -> dict:
    return config(stage, micro=1, gradient_clipping=0, optimizer={"type": "SGD", "params": {"lr": RATE}})


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """This piece's part of the mean over a whole sequence."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum") / (LENGTH - 1)


def plain_losses(steps: int) -> list[float]:
    model, losses = llama(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for row in tokens(steps):
        loss = loss_of(model(input_ids=row[None]).logits, F.pad(row[1:], (0, 1), value=-100)[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def body_training(stage: int, expected: list[float], own_backward: bool):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF, UlyssesSPDataLoaderAdapter
    deepspeed.init_distributed()
    model = llama()
    mpu = UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", sequence_parallel_size=2, micro_batch_size=1)
    engine = deepspeed.initialize(model=model, config=stage_config(stage), mpu=mpu)[0]
    assert engine.train_batch_size() == 1 and deepspeed.utils.groups._get_sequence_parallel_world_size() == 2
    rows = tokens(len(expected))[mpu.get_sequence_parallel_rank()::2]  # each rank loads every second sequence
    loader = DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=1)
    shared = UlyssesSPDataLoaderAdapter(loader, mpu.get_sequence_parallel_rank(), mpu.get_sequence_parallel_group(), 2, engine.device)
    assert len(shared) == len(expected)
    for number, batch in enumerate(shared):
        targets = batch.pop("shift_labels")
        assert batch["input_ids"].shape == targets.shape == (1, LENGTH // 2)
        loss = loss_of(engine(**batch).logits, targets)
        total = loss.detach().clone()
        deepspeed.comm.all_reduce(total)
        assert total.item() == pytest.approx(expected[number], rel=1e-5), (number, total.item(), expected)
        loss.backward() if own_backward else engine.backward(loss)
        engine.step()
    assert number + 1 == len(expected) and [len(list(shared))] == [len(expected)]  # and another epoch


@pytest.mark.parametrize(("stage", "own_backward"), ((0, False), (2, False), (3, False), (2, True)))
def test_training_on_shared_sequences_follows_training_on_whole_ones(stage, own_backward):
    expected = plain_losses(6)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-2)
    run_ranks(body_training, 2, {"stage": stage, "expected": expected, "own_backward": own_backward})


def body_refusals():
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF, UlyssesSPDataLoaderAdapter
    deepspeed.init_distributed()
    register = UlyssesSPAttentionHF.register_with_transformers
    model = llama()
    assert register(model, "sdpa", sequence_parallel_size=1, micro_batch_size=1) is None
    for message, arguments in (("divide the number of ranks, 2, got 3", {"sequence_parallel_size": 3}),
                               ("the model uses attn_implementation='sdpa'", {"core_attn_implementation": "eager"}),
                               ("seq_length must be", {"seq_length_is_variable": False})):
        with pytest.raises(ValueError, match=message):
            register(model, **{"core_attn_implementation": "sdpa", "sequence_parallel_size": 2, "micro_batch_size": 1, **arguments})
    unit = register(model, "sdpa", sequence_parallel_size=2, micro_batch_size=1)
    odd = DataLoader([{"input_ids": torch.zeros(5, dtype=torch.int64)}], batch_size=1)
    adapter = UlyssesSPDataLoaderAdapter(odd, unit.get_sequence_parallel_rank(), unit.get_sequence_parallel_group(), 2, "cpu")
    with pytest.raises(ValueError, match="whose length 2 divides, found 5: pad"):
        next(adapter)


def test_what_cannot_be_shared_is_refused(monkeypatch):
    single_rank(monkeypatch)
    llama()
    run_ranks(body_refusals, 2)


COUNTED = torch.arange(LENGTH).expand(2, -1)
PACKED = torch.cat([torch.arange(LENGTH - 4), torch.arange(4)]).expand(2, -1)
LEFT_PADDED = torch.stack([torch.arange(LENGTH), torch.cat([torch.zeros(3, dtype=torch.int64), torch.arange(LENGTH - 3)])])
EACH_ITS_OWN = torch.arange(LENGTH // 2).repeat(2).expand(2, -1)
NEEDS = r"needs position_ids that count 0 to 11 over the ranks in every row, found {}.*Use a flash attention"
# The positions of whole sequences, what else attention gets, the module's is_causal, and the refusal (None: it is computed).
CALLS = {
    "packed": (PACKED, {}, True, NEEDS.format("0 at token 8 of row 0")),
    "left padded": (LEFT_PADDED, {}, True, NEEDS.format("0 at token 1 of row 1")),
    "each rank counts its own": (EACH_ITS_OWN, {}, True, NEEDS.format("0 at token 6 of row 0")),
    "three kinds of positions": (COUNTED.expand(3, 2, -1), {}, True, NEEDS.format(r"the shape \(3, 4, 6\)")),
    "window": (COUNTED, {"sliding_window": LENGTH - 1}, True, "sliding_window = 11 of 12 tokens.*Use a flash attention"),
    "window over all": (COUNTED, {"sliding_window": LENGTH}, True, None),
    "module without order": (COUNTED, {}, False, "found is_causal = False in Attention: use a flash attention"),
    "call without order": (COUNTED, {"is_causal": False}, True, "found is_causal = False in Attention: use a flash attention"),
    "call with order": (COUNTED, {"is_causal": True}, False, None),
}


def shared_attention(unit, function, **options):
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    return UlyssesSPAttentionHF(attn=function, batch_size=2, attn_head_count=4, attn_head_size=8, kv_head_count=4, num_hidden_layers=1,
                                process_group=unit.get_sequence_parallel_group(), seq_length_is_variable=True, **options)


def piece_of(positions: torch.Tensor, rank: int) -> torch.Tensor:
    return positions[..., LENGTH // 2 * rank:LENGTH // 2 * (rank + 1)].contiguous()


def body_calls(names: list[str]):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    attention, heads = shared_attention(unit, causal), [torch.randn(2, 4, LENGTH // 2, 8) for _ in range(3)]
    for name in names:
        positions, options, module_is_causal, refusal = CALLS[name]
        module = Attention(1)
        module.is_causal = module_is_causal
        own = piece_of(positions, unit.get_sequence_parallel_rank())
        if refusal is None:
            assert attention(module, *heads, None, position_ids=own, **options)[0].shape == (2, LENGTH // 2, 4, 8)
            continue
        with pytest.raises(ValueError, match=refusal):
            attention(module, *heads, None, position_ids=own, **options)


@pytest.mark.parametrize("names", (("packed", "left padded", "each rank counts its own", "three kinds of positions"), ("window", "window over all"),
                                   ("module without order", "call without order", "call with order")), ids=("positions", "windows", "order"))
def test_attention_that_needs_a_mask_is_refused(names):
    run_ranks(body_calls, 2, {"names": list(names)})


def body_positions_that_change():
    """Positions are looked at once for all layers, but again when they are others; a flash attention packs one row at a time."""
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    rank, module = unit.get_sequence_parallel_rank(), Attention(1)
    heads = [torch.randn(2, 4, LENGTH // 2, 8) for _ in range(3)]
    attention, positions = shared_attention(unit, causal), piece_of(COUNTED, rank)
    for _ in range(2):
        attention(module, *heads, None, position_ids=positions)
    positions.copy_(piece_of(PACKED, rank) + 1)
    with pytest.raises(ValueError, match="found 1 at token 0 of row 0"):
        attention(module, *heads, None, position_ids=positions)
    packing = shared_attention(unit, causal, core_attn_implementation="flash_attention_2")
    packing(module, *(part[:1] for part in heads), None, position_ids=piece_of(PACKED[:1], rank), sliding_window=3)
    with pytest.raises(ValueError, match="'flash_attention_2' and 2 sequences at once.*one sequence or packed row at a time"):
        packing(module, *heads, None, position_ids=piece_of(PACKED, rank))


def test_positions_are_looked_at_whenever_they_change():
    run_ranks(body_positions_that_change, 2)


def adapter_over(unit, samples: list[dict], device="cpu"):
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPDataLoaderAdapter
    return UlyssesSPDataLoaderAdapter(DataLoader(samples, batch_size=1), unit.get_sequence_parallel_rank(), unit.get_sequence_parallel_group(), 2, device)


def body_pieces():
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    row = torch.arange(4)
    for piece in adapter_over(unit, [{"input_ids": row, "labels": row}], device="meta"):
        assert {key: (value.device.type, value.shape) for key, value in piece.items()} == \
            {key: ("meta", (1, 2)) for key in ("input_ids", "shift_labels", "position_ids")}
    padded_right, padded_left = ({"input_ids": row, "attention_mask": torch.tensor(mask)} for mask in ([1, 1, 1, 0], [0, 1, 1, 1]))
    assert len(list(adapter_over(unit, [padded_right]))) == 2
    with pytest.raises(ValueError, match=r"zeros before ones \(padding on the left\).*pad on the right"):
        next(adapter_over(unit, [padded_left]))
    known = {**padded_left, "position_ids": torch.tensor([0, 0, 1, 2])}
    assert len(list(adapter_over(unit, [known]))) == 2  # attention decides


def test_pieces_go_to_the_device_and_tell_of_padding():
    run_ranks(body_pieces, 2)


def body_uneven():
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    adapter = adapter_over(unit, [{"input_ids": torch.arange(4)}] * (3 - unit.get_sequence_parallel_rank()))
    for _ in range(4):
        next(adapter)
    with pytest.raises(ValueError, match="those ended: rank 1 after 2; and rank 0 gave 3 .*drop_last=True"):
        next(adapter)


def test_a_loader_that_ends_earlier_is_an_error_on_all_ranks():
    run_ranks(body_uneven, 2)


def body_engine_of_its_own(own_backward: bool):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    sharing, plain = (deepspeed.initialize(model=torch.nn.Linear(2, 1, bias=False), config=stage_config(1), mpu=mpu)[0] for mpu in (unit, None))
    assert (sharing.sequence_parallel_size, plain.sequence_parallel_size) == (2, 1)
    assert (sharing.train_batch_size(), plain.train_batch_size()) == (1, 2)
    assert sharing.get_sequence_parallel_group() is unit.get_sequence_parallel_group() and plain.get_sequence_parallel_group() is None
    before = plain.module.weight.detach().clone()
    loss = plain(torch.ones(1, 2)).sum()
    loss.backward() if own_backward else plain.backward(loss)
    plain.step()
    torch.testing.assert_close(plain.module.weight.detach(), before - RATE)


@pytest.mark.parametrize("own_backward", (False, True))
def test_an_engine_without_mpu_shares_no_sequences(own_backward):
    run_ranks(body_engine_of_its_own, 2, {"own_backward": own_backward})


def body_second_world(store: str):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    deepspeed.init_distributed()
    first = initialize_sequence_parallel(2)
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    second = initialize_sequence_parallel(2)
    assert second is not first and initialize_sequence_parallel(2) is second
    total = torch.ones(1)
    torch.distributed.all_reduce(total, group=second.get_sequence_parallel_group())
    assert total.item() == 2


def test_groups_of_an_ended_world_are_made_anew(tmp_path):
    run_ranks(body_second_world, 2, {"store": str(tmp_path / "store")})
