"""The GPT example's model, trained on real text, loses less than 2 % of perplexity in 8 bits, and keeps most of it in 4."""
from __future__ import annotations

import copy
import math
import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers")
from common import single_rank  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """(model, held-out windows) after 200 steps on sixty files of Python's standard library."""
    folder = tmp_path_factory.mktemp("perplexity")
    (folder / "text").mkdir()
    for source in sorted(Path(os.__file__).parent.glob("*.py"))[:60]:
        (folder / "text" / source.name).write_bytes(source.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        single_rank(patch)
        import data
        import model as gpt

        import deepspeed
        text = data.load_text(str(folder / "text"), 1024, str(folder / "cache"))
        torch.manual_seed(1)
        net = gpt.GPT(gpt.GPTConfig(vocab_size=text.vocab_size, block_size=64, n_layer=2, d_model=128, n_head=4))
        settings = {"train_micro_batch_size_per_gpu": 16, "gradient_clipping": 1.0, "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}}}
        engine = deepspeed.initialize(model=net, config=settings)[0]
        windows = data.TrainingWindows(text.train, 64, 16, seed=1, rank=0)
        for step in range(200):
            engine.backward(engine(*windows.batch(step)))
            engine.step()
        engine.destroy()
        held_out = list(data.EvaluationWindows(text.held_out, 64, 16, 64, rank=0, world_size=1))
        for name in ("data", "model"):
            sys.modules.pop(name, None)
    return net.eval(), held_out


@torch.no_grad()
def _perplexity(model: torch.nn.Module, held_out: list) -> float:
    total = sum(model(tokens, targets).item() * weight for tokens, targets, weight in held_out)
    return math.exp(total / sum(weight for *_, weight in held_out))


@pytest.mark.parametrize("bits, grows_by", [(8, 1.02), (4, 1.5)])
def test_perplexity_hardly_grows(bits, grows_by, trained):
    from deepspeed.inference.quantization import _init_group_wise_weight_quantization
    from deepspeed.inference.quantization.layers import QuantizedEmbedding, QuantizedLinear
    model, held_out = trained
    before = _perplexity(model, held_out)
    assert before < 400, "the model has learnt something: without training it is about 1024"
    quantised = copy.deepcopy(model)
    rules = {"": {"num_bits": bits, "group_size": 64, "group_dim": 1, "symmetric": False}}
    _init_group_wise_weight_quantization(quantised, {"weight_quantization": {"post_init_quant": rules}})
    assert any(isinstance(m, QuantizedLinear) for m in quantised.modules()) and any(isinstance(m, QuantizedEmbedding) for m in quantised.modules())
    after = _perplexity(quantised, held_out)
    assert after != before and after < grows_by * before, (before, after)
