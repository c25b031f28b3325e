"""Writes a Hugging Face model folder with random weights, a piece at a time, so that models larger than memory can be made.

    python random_weights.py --shape llama-2-7b --out /local/disk/llama

The folder has what a downloaded one has: config.json, model-*.safetensors and their index. Values are normal with the model's
initializer_range, norms are ones; files are made from --seed alone.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

SHAPES = {  # hyper-parameters as published with the models
    "llama-2-7b": lambda: LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                                      num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096),
    "tiny-llama": lambda: LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
                                      num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512),
    "opt-1.3b": lambda: OPTConfig(vocab_size=50272, hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32,
                                  max_position_embeddings=2048, word_embed_proj_dim=2048),
    "tiny-opt": lambda: OPTConfig(vocab_size=512, hidden_size=256, ffn_dim=1024, num_hidden_layers=4, num_attention_heads=8,
                                  max_position_embeddings=512, word_embed_proj_dim=256),
}


def config_of(shape: str) -> PretrainedConfig:
    """The configuration of a shape named above, of a folder, or of a config.json."""
    return SHAPES[shape]() if shape in SHAPES else AutoConfig.from_pretrained(shape)


def tensors_of(config: PretrainedConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's parameters by name, without values; of tied ones the first name."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype)
    return dict(model.named_parameters())


def _values(name: str, like: torch.Tensor, deviation: float, generator: torch.Generator) -> torch.Tensor:
    if like.dim() == 1:
        return torch.zeros(like.shape, dtype=like.dtype) if name.endswith("bias") else torch.ones(like.shape, dtype=like.dtype)
    # One random block repeated with changing signs: normal values, at the speed of memory.
    block = torch.randn(min(like.numel(), 1 << 20), generator=generator).mul_(deviation).to(like.dtype)
    flat = torch.empty(like.numel(), dtype=like.dtype)
    for begin in range(0, flat.numel(), block.numel()):
        part = flat[begin:begin + block.numel()]
        sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
        part.copy_(block.roll(int(torch.randint(block.numel(), (), generator=generator)))[:part.numel()] * sign)
    return flat.view(like.shape)


def write_model(config: PretrainedConfig, folder: Path, dtype: torch.dtype = torch.bfloat16, piece_bytes: int = 1 << 30,
                seed: int = 0) -> int:
    """Writes the folder and returns the bytes of its tensors. Takes memory for one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    config.torch_dtype = dtype
    config.architectures = config.architectures or [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    deviation = config.initializer_range if hasattr(config, "initializer_range") else config.init_std
    generator = torch.Generator().manual_seed(seed)
    pieces: list[list[tuple[str, torch.Tensor]]] = [[]]
    used = total = 0
    for name, like in tensors_of(config, dtype).items():
        size = like.numel() * dtype.itemsize
        if used and used + size > piece_bytes:
            pieces.append([])
            used = 0
        pieces[-1].append((name, like))
        used += size
        total += size
    where: dict[str, str] = {}
    for number, piece in enumerate(pieces, start=1):
        file = f"model-{number:05}-of-{len(pieces):05}.safetensors"
        values = {name: _values(name, like, deviation, generator) for name, like in piece}
        save_file(values, folder / file, metadata={"format": "pt"})
        where.update({name: file for name, _ in piece})
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny-llama", help=f"one of {', '.join(SHAPES)}, a folder, or a config.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = write_model(config_of(args.shape), args.out, getattr(torch, args.dtype), seed=args.seed)
    print(f"{args.out}: {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
