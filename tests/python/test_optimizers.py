"""The optimizer classes outside an engine, against their formulas and torch."""
from __future__ import annotations

import pytest
import torch

from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion


def run(make, steps: int = 5, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(7, 33).to(dtype)), torch.nn.Parameter(torch.randn(1000).to(dtype)),
              torch.nn.Parameter(torch.tensor(0.5).to(dtype))]
    optimizer = make(params)
    for step in range(steps):
        torch.manual_seed(step + 1)
        for param in params:
            param.grad = torch.randn(param.shape).to(dtype)
        optimizer.step()
    return [param.detach().float() for param in params], optimizer


def assert_close(one, other, tolerance: float = 1e-6):
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_equals_torch(decoupled, decay):
    reference = (torch.optim.AdamW if decoupled else torch.optim.Adam)
    expected, _ = run(lambda p: reference(p, lr=1e-2, weight_decay=decay))
    assert_close(run(lambda p: DeepSpeedCPUAdam(p, lr=1e-2, weight_decay=decay, adamw_mode=decoupled))[0], expected)
    fused, optimizer = run(lambda p: FusedAdam(p, lr=1e-2, weight_decay=decay, adam_w_mode=decoupled))
    assert_close(fused, expected)
    assert optimizer.param_groups[0]["step"] == 5


def test_adam_without_bias_correction():
    torch.manual_seed(0)
    param, grad = torch.randn(50), torch.randn(50)
    leaf = torch.nn.Parameter(param.clone())
    leaf.grad = grad.clone()
    DeepSpeedCPUAdam([leaf], lr=0.1, bias_correction=False, betas=(0.8, 0.9)).step()
    expected = param - 0.1 * (0.2 * grad) / ((0.1 * grad**2).sqrt() + 1e-8)
    torch.testing.assert_close(leaf.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16bit_parameters_are_updated_in_fp32_and_rounded(dtype):
    expected, _ = run(lambda p: torch.optim.AdamW(p, lr=1e-2), steps=1)
    got, optimizer = run(lambda p: DeepSpeedCPUAdam(p, lr=1e-2), steps=1, dtype=dtype)
    assert_close(got, expected, 5e-2)
    states = next(iter(optimizer.state.values()))
    assert states["exp_avg"].dtype == torch.float32
    low = run(lambda p: DeepSpeedCPUAdam(p, lr=1e-2, fp32_optimizer_states=False), steps=2, dtype=dtype)[1]
    assert next(iter(low.state.values()))["exp_avg"].dtype == dtype


def test_states_save_and_load_as_torch_does():
    _, first = run(lambda p: DeepSpeedCPUAdam(p, lr=1e-2))
    state = first.state_dict()
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"} and state["state"][0]["step"] == 5
    _, second = run(lambda p: DeepSpeedCPUAdam(p, lr=1e-2), steps=0)
    second.load_state_dict(state)
    assert torch.equal(second.state_dict()["state"][1]["exp_avg"], state["state"][1]["exp_avg"])


def test_lion_equals_its_formula():
    torch.manual_seed(0)
    param, grad, momentum = torch.randn(100), torch.randn(100), torch.zeros(100)
    expected = param.clone()
    for cls in (DeepSpeedCPULion, FusedLion):
        leaf = torch.nn.Parameter(param.clone())
        optimizer = cls([leaf], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
        expected, momentum = param.clone(), torch.zeros(100)
        for step in range(3):
            leaf.grad = grad * (step + 1)
            optimizer.step()
            direction = 0.9 * momentum + 0.1 * leaf.grad
            expected = expected * (1 - 0.01 * 0.1) - 0.01 * torch.copysign(torch.ones(100), direction)
            momentum = 0.99 * momentum + 0.01 * leaf.grad
        torch.testing.assert_close(leaf.detach(), expected, atol=1e-6, rtol=1e-6)


def test_adagrad_equals_torch():
    expected, _ = run(lambda p: torch.optim.Adagrad(p, lr=1e-2, weight_decay=0.1))
    assert_close(run(lambda p: DeepSpeedCPUAdagrad(p, lr=1e-2, weight_decay=0.1))[0], expected)


def test_lamb_scales_each_tensor_by_its_trust_ratio():
    torch.manual_seed(0)
    param, grad = torch.randn(60), torch.randn(60)
    leaf = torch.nn.Parameter(param.clone())
    leaf.grad = grad.clone()
    optimizer = FusedLamb([leaf], lr=0.01, weight_decay=0.1)
    optimizer.step()
    update = (0.1 * grad) / ((0.001 * grad**2).sqrt() + 1e-8) + 0.1 * param
    ratio = float((param.norm() / update.norm()).clamp(0.01, 10.0))
    size = 0.01 * (1 - 0.999)**0.5 / (1 - 0.9)
    torch.testing.assert_close(leaf.detach(), param - size * ratio * update, atol=1e-5, rtol=1e-5)
    assert optimizer.get_lamb_coeffs() == [pytest.approx(ratio, rel=1e-4)]


@pytest.mark.parametrize("cls", [DeepSpeedCPUAdam, FusedAdam, DeepSpeedCPUAdagrad, FusedLamb])
def test_amsgrad_is_refused(cls):
    with pytest.raises(RuntimeError, match="AMSGrad"):
        cls([torch.nn.Parameter(torch.ones(1))], amsgrad=True)


@pytest.mark.parametrize("cls", [DeepSpeedCPUAdam, DeepSpeedCPUAdagrad, DeepSpeedCPULion])
def test_cpu_optimizers_refuse_other_devices(cls):
    param = torch.nn.Parameter(torch.ones(2, device="meta"))
    param.grad = torch.ones(2, device="meta")
    with pytest.raises(AssertionError, match="CPU"):
        cls([param]).step()


def test_closures_groups_and_missing_gradients():
    first, second = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = DeepSpeedCPUAdam([{"params": [first], "lr": 0.0}, {"params": [second]}], lr=0.1)

    def closure():
        (first.sum() * second.detach().sum()).backward()
        return torch.tensor(4.0)

    assert optimizer.step(closure) == 4.0
    assert torch.equal(first, torch.ones(3)) and torch.equal(second, torch.ones(3)) and second not in optimizer.state


def test_builders_exist_for_every_operator_and_say_what_is_missing():
    from deepspeed.ops import __compatible_ops__
    from deepspeed.ops.aio import AsyncIOBuilder
    from deepspeed.ops.op_builder import ALL_OPS, CPUAdamBuilder, EvoformerAttnBuilder, FusedAdamBuilder
    assert __compatible_ops__[CPUAdamBuilder.NAME] and CPUAdamBuilder().is_compatible() and FusedAdamBuilder().load().FusedAdam is FusedAdam
    assert __compatible_ops__[AsyncIOBuilder.NAME] and not __compatible_ops__[EvoformerAttnBuilder.NAME]
    with pytest.raises(NotImplementedError, match="evoformer_attn.*not built yet"):
        EvoformerAttnBuilder().load()
    assert all(name == builder.NAME for name, builder in ALL_OPS.items())


def test_the_native_functions_by_id():
    from deepspeed.ops.op_builder import CPUAdamBuilder
    native = CPUAdamBuilder().load()
    native.create_adam(5, 1e-3, 0.9, 0.999, 1e-8, 0.0, True, False)
    param, grad, first, second = torch.ones(10), torch.ones(10), torch.zeros(10), torch.zeros(10)
    native.adam_update(5, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, True, param, grad, first, second)
    torch.testing.assert_close(param, torch.full((10,), 0.9))
    native.destroy_adam(5)
    with pytest.raises(RuntimeError, match="create_adam"):
        native.adam_update(5, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, True, param, grad, first, second)


def test_muon_orthogonalises_matrices():
    from deepspeed.runtime.zero.muon import MuonWithAuxAdam
    from deepspeed.runtime.zero.muon.muon_optimizer import newton_schulz
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8)):
        made = newton_schulz(torch.randn(shape)) / max(1.0, shape[0] / shape[1])**0.5
        singular = torch.linalg.svdvals(made)
        assert singular.min() > 0.4 and singular.max() < 1.4
    matrix, vector = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(6))
    optimizer = MuonWithAuxAdam([{"params": [matrix], "use_muon": True, "lr": 0.1}, {"params": [vector], "use_muon": False}])
    before = (matrix.detach().clone(), vector.detach().clone())
    matrix.grad, vector.grad = torch.randn(4, 6), torch.randn(6)
    optimizer.step()
    assert not torch.equal(matrix, before[0]) and "momentum_buffer" in optimizer.state[matrix] and "exp_avg" in optimizer.state[vector]


def test_a_sub_group_is_stepped_with_its_own_state():
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    torch.manual_seed(0)
    values, grads = torch.randn(2, 10), torch.randn(3, 2, 10)
    expected = [torch.nn.Parameter(value.clone()) for value in values]
    plain = DeepSpeedCPUAdam(expected, lr=0.1)
    shown = torch.nn.Parameter(torch.zeros(10))
    optimizer = DeepSpeedCPUAdam([shown], lr=0.1)
    groups = values.clone()
    for step in range(3):
        for index, param in enumerate(expected):
            param.grad = grads[step, index]
            shown.data, shown.grad = groups[index], grads[step, index]
            optimizer.step_subgroup(index)
        plain.step()
    assert torch.equal(groups, torch.stack([param.data for param in expected]))
    assert set(optimizer.state) == {0, 1} and optimizer.state[1]["step"] == 3
    with pytest.raises(ValueError, match="2 parameters have gradients"):
        plain.step_subgroup(0)
