"""zero.Init, GatheredParameters, external parameters, leaf modules, TiledLinear."""
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from common import single_rank
from models import TinyLanguageModel, batch, config, full_weights, make_model, train, train_plain


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def built(**options):
    import deepspeed
    with deepspeed.zero.Init(**options):
        return make_model()


def test_parameters_are_sharded_right_after_construction():
    from deepspeed.zero import ZeroParamStatus
    model = built()
    weight = model.up.weight
    assert weight.shape == torch.Size([0]) and weight.numel() == 0
    assert weight.ds_shape == torch.Size([15, 8]) and weight.ds_numel == 120 and weight.ds_status == ZeroParamStatus.NOT_AVAILABLE
    assert weight.ds_tensor.numel() == 120 and weight.partition_numel() == 120 and isinstance(weight, nn.Parameter)
    assert len({p.ds_id for p in model.parameters()}) == len(list(model.parameters()))
    assert model.head.weight is model.embedding.weight
    with pytest.raises(AttributeError):
        _ = nn.Linear(2, 2).weight.ds_id


def test_values_are_those_of_an_ordinary_construction():
    expected = dict(make_model().named_parameters())
    for name, value in full_weights(built()).items():
        assert torch.equal(value, expected[name])


def test_an_existing_model_is_converted():
    import deepspeed
    model = make_model()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    deepspeed.zero.Init(module=model)
    assert model.up.weight.numel() == 0
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(model).items())


def test_disabled_contexts_do_nothing():
    import deepspeed
    with deepspeed.zero.Init(enabled=False):
        model = nn.Linear(3, 3)
    assert type(model.weight) is nn.Parameter
    with deepspeed.zero.GatheredParameters(built().up.weight, enabled=False):
        pass


def test_patches_are_gone_after_the_context_even_after_an_error():
    import deepspeed
    before = (nn.Linear.__init__, nn.Module.apply, torch.empty, torch.arange, nn.Module.__dict__.get("__init_subclass__"))
    with pytest.raises(ZeroDivisionError), deepspeed.zero.Init(), deepspeed.zero.Init():
        nn.Linear(2, 2)
        _ = 1 / 0
    assert before == (nn.Linear.__init__, nn.Module.apply, torch.empty, torch.arange, nn.Module.__dict__.get("__init_subclass__"))


def test_classes_defined_inside_the_context_are_sharded_too():
    import deepspeed
    with deepspeed.zero.Init():

        class Own(nn.Module):

            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(4))

        model = Own()
    assert model.weight.ds_numel == 4
    assert type(Own().weight) is nn.Parameter


def test_a_decorator_of_a_class_that_is_defined_inside_the_context_stays():
    # As libraries do that are imported while a model is built: the class comes into being with the patches in place.
    import deepspeed

    def remembering(cls):
        construct = cls.__init__

        def remember(module, size):
            construct(module, size)
            module.size = size

        cls.__init__ = remember
        return cls

    with deepspeed.zero.Init():

        @remembering
        class Own(nn.Module):

            def __init__(self, size):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(size))

        assert Own(4).size == 4
    whole = Own(5)
    assert whole.size == 5 and type(whole.weight) is nn.Parameter
    with deepspeed.zero.Init():
        again = Own(6)
    assert again.size == 6 and again.weight.ds_numel == 6


def test_dtype_of_the_configuration_with_values_still_auto():
    settings = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": True},
                "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}}
    model = built(config_dict_or_path=settings)
    assert model.up.weight.dtype == torch.bfloat16 and model.up.weight.ds_tensor.dtype == torch.bfloat16
    assert built(dtype=torch.float16).up.weight.dtype == torch.float16
    with pytest.raises(AssertionError, match="Invalid data type"):
        built(dtype=torch.int8)


def test_constructors_make_the_models_dtype_but_another_library_may_spare_arange():
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters as pp
    original, seen = pp.zero_wrapper_for_fp_tensor_constructor, []

    def spare_arange(fn, *args, **kwargs):
        if fn is pp._orig_torch_arange:
            seen.append(kwargs)
            return fn
        return original(fn, *args, **kwargs)

    with deepspeed.zero.Init(dtype=torch.bfloat16):
        assert torch.arange(3.0).dtype == torch.bfloat16 and torch.zeros(2).dtype == torch.bfloat16
        assert torch.zeros(2, dtype=torch.long).dtype == torch.long
    pp.zero_wrapper_for_fp_tensor_constructor = spare_arange
    try:
        with deepspeed.zero.Init(dtype=torch.bfloat16):
            assert torch.arange(3.0).dtype == torch.float32 and torch.ones(2).dtype == torch.bfloat16
    finally:
        pp.zero_wrapper_for_fp_tensor_constructor = original
    assert set(seen[0]) == {"target_fp_dtype", "target_device"}


def test_initialisers_of_parents_see_whole_parameters():
    import deepspeed

    class Parent(nn.Module):

        def __init__(self):
            super().__init__()
            self.child = nn.Linear(4, 4)
            self.apply(self.fill)

        @staticmethod
        def fill(module):
            if isinstance(module, nn.Linear):
                assert module.weight.shape == (4, 4)
                nn.init.constant_(module.weight, 0.5)

    with deepspeed.zero.Init():
        model = Parent()
    assert torch.equal(full_weights(model)["child.weight"], torch.full((4, 4), 0.5))


def test_changes_under_a_modifier_rank_stay_and_others_are_lost():
    import deepspeed
    model = built()
    with deepspeed.zero.GatheredParameters(model.up.weight, modifier_rank=0):
        assert model.up.weight.shape == (15, 8)
        model.up.weight.data.fill_(3.0)
    assert model.up.weight.numel() == 0
    with deepspeed.zero.GatheredParameters(model.up.weight):
        assert torch.equal(model.up.weight, torch.full((15, 8), 3.0))
        model.up.weight.data.fill_(4.0)
    assert torch.equal(full_weights(model)["up.weight"], torch.full((15, 8), 3.0))


def test_a_modifier_on_one_rank_writes_without_a_copy():
    import deepspeed
    model = built()
    stored = model.up.weight.ds_tensor.data_ptr()
    with deepspeed.zero.GatheredParameters(model.up.weight, modifier_rank=0):
        assert model.up.weight.data_ptr() == stored
    with deepspeed.zero.GatheredParameters(model.up.weight):
        assert model.up.weight.data_ptr() != stored


@pytest.mark.parametrize("choose", [
    lambda m: [], lambda m: None, lambda m: [None, m.up.bias], lambda m: m.parameters(), lambda m: (p for p in m.up.parameters()),
    lambda m: [m.up.weight, m.up.weight], lambda m: set(m.parameters()), lambda m: [m.table, torch.ones(2), nn.Parameter(torch.ones(1))],
    lambda m: m.up.weight, lambda m: [m.scale], lambda m: dict(m.named_parameters()).values()
])
@pytest.mark.parametrize("modifier_rank", [None, 0])
def test_whatever_is_given_to_gather_is_taken(choose, modifier_rank):
    import deepspeed
    model = built()
    expected = full_weights(model)
    with deepspeed.zero.GatheredParameters(choose(model), modifier_rank=modifier_rank):
        pass
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(model).items())
    assert all(p.numel() == 0 for p in model.parameters())


def test_overlapping_contexts_are_an_error():
    import deepspeed
    model = built()
    with deepspeed.zero.GatheredParameters(model.up.weight):
        with pytest.raises(RuntimeError, match="cannot overlap"), deepspeed.zero.GatheredParameters(model.up.parameters()):
            pass
        with deepspeed.zero.GatheredParameters(model.down.parameters()):
            assert model.down.weight.shape == (8, 15) and model.up.weight.shape == (15, 8)
    assert model.up.weight.numel() == 0 and model.down.weight.numel() == 0


def test_gathered_parameters_can_be_copied():
    import deepspeed
    model = built()
    with deepspeed.zero.GatheredParameters(model.up.parameters()):
        twin = copy.deepcopy(model.up)
    assert twin.weight.shape == (15, 8) and not hasattr(twin.weight, "ds_id") and torch.equal(twin.weight, full_weights(model)["up.weight"])


def test_a_parameter_may_be_replaced_inside_the_context():
    import deepspeed
    model = built()
    with deepspeed.zero.Init():
        bigger = nn.Linear(8, 20)
    with deepspeed.zero.GatheredParameters([model.up.weight, bigger.weight], modifier_rank=0):
        bigger.weight.data[:15] = model.up.weight.data
        model.up.weight = bigger.weight
    assert model.up.weight.ds_shape == (20, 8) and model.up.weight.numel() == 0


def test_single_parameters_gather_and_partition_themselves():
    from deepspeed.zero import ZeroParamStatus
    model = built()
    model.up.weight.all_gather()
    assert model.up.weight.ds_status == ZeroParamStatus.AVAILABLE and model.up.weight.shape == (15, 8)
    model.up.weight.partition()
    assert model.up.weight.ds_status == ZeroParamStatus.NOT_AVAILABLE


def test_attributes_stick_to_sharded_parameters():
    model = built()
    model.up.weight._is_hf_initialized = True
    assert model.up.weight._is_hf_initialized and not model.up.weight.ds_active_sub_modules


def engine_over(model, **more):
    import deepspeed
    return deepspeed.initialize(model=model, config=config(3, **more))[0]


def test_training_a_model_built_sharded_equals_plain_torch():
    expected = [row[0] for row in train_plain(make_model(), 5)]
    engine = engine_over(built())
    assert train(engine, 5) == pytest.approx(expected, abs=1e-5)
    assert engine.module.up.weight.numel() == 0 and engine.module.norm.weight.numel() == 0
    assert engine.module.down.bias.shape == (8,) and engine.module.down.bias.ds_persist
    assert engine.module.scale.item() != 1.0


def test_an_engine_may_be_made_inside_the_context():
    import deepspeed
    with deepspeed.zero.Init():
        engine = engine_over(make_model())
        extra = nn.Linear(2, 2)
    train(engine, 2)
    assert hasattr(extra.weight, "ds_id")


def test_the_engines_precision_wins_over_the_contexts():
    engine = engine_over(built(), bf16={"enabled": True})
    train(engine, 1)
    assert engine.module.up.weight.dtype == torch.bfloat16


class Borrowing(TinyLanguageModel):
    """Uses the embedding's weight as a matrix, without calling the embedding."""

    def forward(self, tokens, targets):
        h = self.down(self.norm(self.up(self.embedding(tokens))))
        return F.cross_entropy(F.linear(h, self.embedding.weight).flatten(0, 1), targets.flatten())


def test_a_released_parameter_that_a_forward_reads_is_gathered():
    import deepspeed
    plain = make_model(cls=Borrowing, tied=False)
    expected = [row[0] for row in train_plain(plain, 4)]
    engine = deepspeed.initialize(model=make_model(cls=Borrowing, tied=False), config=config(3))[0]
    assert train(engine, 4) == pytest.approx(expected, abs=1e-5)
    assert [p.ds_id for _, p in engine.module.ds_external_parameters()] == [engine.module.embedding.weight.ds_id]
    assert engine.module.embedding.weight.numel() == 0


def test_external_parameters_can_be_registered_by_hand():
    import deepspeed
    model = make_model(cls=Borrowing, tied=False)
    engine = engine_over(model)
    deepspeed.zero.register_external_parameter(model, model.embedding.weight)
    train(engine, 2)
    deepspeed.zero.unregister_external_parameter(model, model.embedding.weight)
    with pytest.raises(RuntimeError, match="not a registered external parameter"):
        deepspeed.zero.unregister_external_parameter(model, model.embedding.weight)
    train(engine, 1)


def test_checkpointed_forward_passes_train_the_same():
    import deepspeed
    from torch.utils.checkpoint import checkpoint

    class Recomputing(TinyLanguageModel):
        mode = "ours"

        def block(self, h):
            return h + self.down(F.gelu(self.norm(self.up(h))))

        def forward(self, tokens, targets):
            h = self.embedding(tokens)
            for _ in range(2):
                if self.mode == "ours":
                    h = deepspeed.checkpointing.checkpoint(self.block, h)
                elif self.mode == "none":
                    h = self.block(h)
                else:
                    h = checkpoint(self.block, h, use_reentrant=self.mode == "reentrant")
            return F.cross_entropy(self.head(h).flatten(0, 1), targets.flatten())

    results = {}
    for stage in (0, 2, 3):
        for mode in ("none", "ours", "reentrant", "other"):
            engine = deepspeed.initialize(model=make_model(cls=Recomputing), config=config(stage))[0]
            engine.module.mode = mode
            results[stage, mode] = train(engine, 3)
    first = results[0, "none"]
    assert all(losses == pytest.approx(first, abs=1e-6) for losses in results.values()), results


def test_leaf_modules_gather_their_whole_subtree():
    from deepspeed.utils import get_z3_leaf_modules, set_z3_leaf_modules, unset_z3_leaf_modules, z3_leaf_module, z3_leaf_parameter

    class Experts(nn.Module):

        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.calls = 0

        def forward(self, h):
            self.calls += 1
            chosen = self.calls % 3
            assert all(e.weight.shape == (8, 8) for e in self.experts)
            return h + self.experts[chosen](h)

    class Routed(TinyLanguageModel):

        def __init__(self):
            super().__init__()
            self.experts = Experts()

        def forward(self, tokens, targets):
            h = self.experts(self.embedding(tokens))
            return F.cross_entropy(self.head(h).flatten(0, 1), targets.flatten())

    model = make_model(cls=Routed)
    assert set_z3_leaf_modules(model, [Experts]) == [model.experts] == get_z3_leaf_modules(model) and z3_leaf_module(model.experts)
    engine = engine_over(model)
    losses = train(engine, 6)
    assert z3_leaf_parameter(model.experts.experts[0].weight)
    reference = make_model(cls=Routed)
    reference.experts.forward = lambda h: (setattr(reference.experts, "calls", reference.experts.calls + 1),
                                           h + reference.experts.experts[reference.experts.calls % 3](h))[1]
    expected = []
    params = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)
    for step in range(6):
        loss = reference(*batch(step))
        loss.backward()
        for p in params:  # an unused parameter has gradient zero
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    assert unset_z3_leaf_modules(model, ["Experts"]) == [model.experts] and not get_z3_leaf_modules(model)
    with pytest.raises(ValueError, match="no module of"):
        set_z3_leaf_modules(model, ["Nothing"])


def test_hooks_can_be_removed_and_put_back():
    engine = engine_over(make_model())
    offload = engine.optimizer.parameter_offload
    assert offload.module is engine.module and offload.forward_hooks
    for param in engine.module.parameters():
        param.ds_active_sub_modules.clear()
    for hook in offload.forward_hooks:
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    with pytest.raises(RuntimeError):
        engine(*batch(0))
    offload._register_deepspeed_module(offload.module)
    if offload.param_coordinator.is_invalid_trace():
        offload.param_coordinator._invalidate_trace()
    train(engine, 2)


@pytest.mark.parametrize("override", [True, False])
def test_apply_sees_whole_parameters_unless_configured_otherwise(override):
    import deepspeed
    seen = []
    settings = config(3, zero_optimization={"stage": 3, "override_module_apply": override})
    original = nn.Module.apply
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = make_model()
        model.up.apply(lambda part: seen.append(part.weight.numel()))
        assert (nn.Module.apply is original) is not override
    assert seen == [120 if override else 0] and nn.Module.apply is original


def test_a_model_of_small_parameters_has_its_offload_object_too():
    import deepspeed
    from deepspeed.zero import DeepSpeedZeRoOffload
    zero = {"stage": 3}  # the default threshold keeps every parameter of this model whole
    engine = deepspeed.initialize(model=make_model(), config=config(3, zero_optimization=zero))[0]
    offload = engine.optimizer.parameter_offload
    assert isinstance(offload, DeepSpeedZeRoOffload) and engine.parameter_offload is offload and offload.module is engine.module
    assert train(engine, 2) == pytest.approx([row[0] for row in train_plain(make_model(), 2)], abs=1e-5)
    with deepspeed.zero.unwrap_model_for_generation(engine) as module:
        assert module is engine.module and not list(module.ds_external_parameters())
    reference = deepspeed.initialize(model=make_model(), config={"train_batch_size": 4, "zero_optimization": zero})[0]
    assert isinstance(reference.optimizer, DeepSpeedZeRoOffload) and reference.optimizer.module is reference.module
    reference.eval()(*batch(0))


def test_the_module_is_whole_for_generation_and_sharded_afterwards():
    import deepspeed
    engine = engine_over(make_model())
    with deepspeed.zero.unwrap_model_for_generation(engine) as module:
        assert module is engine.module and module.up.weight.shape == (15, 8)
        with torch.no_grad():
            module(*batch(0))
    assert engine.module.up.weight.numel() == 0
    train(engine, 1)


def test_forward_that_fails_leaves_a_usable_engine():
    engine = engine_over(make_model())
    broken = engine.module.down.forward
    engine.module.down.forward = lambda h: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine(*batch(0))
    engine.module.down.forward = broken
    assert engine.module.up.weight.numel() == 0
    assert train(engine, 3) == pytest.approx([row[0] for row in train_plain(make_model(), 3)], abs=1e-5)


def test_tiled_linear_equals_linear():
    import deepspeed
    linear = nn.Linear(10, 7)
    x = torch.randn(3, 10)
    for in_splits, out_splits in ((1, 1), (3, 2), (10, 7)):
        tiled = deepspeed.zero.TiledLinear(10, 7, in_splits=in_splits, out_splits=out_splits, init_linear=linear)
        torch.testing.assert_close(tiled(x), linear(x))
    parts = deepspeed.zero.TiledLinear(10, 7, out_splits=2, combine_out_splits=False, init_linear=linear)(x)
    torch.testing.assert_close(torch.cat(parts, -1), linear(x))
    with pytest.raises(RuntimeError, match="in_splits must be in range"):
        deepspeed.zero.TiledLinear(10, 7, in_splits=11)
    with pytest.raises(RuntimeError, match="out_splits must be in range"):
        deepspeed.zero.TiledLinear(10, 7, out_splits=0)
