#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets, tests/fuzz/corpus/TARGET/: small files as torch, safetensors and our examples make them.

    tests/fuzz/make_corpus.py        needs torch and safetensors (requirements-dev.txt); what is there already stays

Inputs that once were findings stand in the same folders under names that begin with "found_": this script does not make those.
"""
from __future__ import annotations

import collections
import io
import json
import pathlib
import pickle
import struct

import safetensors.torch
import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def put(target: str, name: str, content: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def states() -> dict[str, object]:
    """What checkpoint files hold: one of each kind of content."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    return {
        "plain": {"a": 1, "b": -70000, "c": 1 << 40, "d": 2.5, "e": None, "f": [True, False, ()], "g": "text", 3: b"bytes"},
        "numbers": [0, 255, 65535, -1, 2**31, -2**63, 2**70, -2**70, 1e-300, float("inf")],
        "tensor": {"weight": weight, "again": weight, "transposed": weight.t(), "part": weight[1], "empty": torch.zeros(0, 4)},
        "expanded": {"one": torch.ones(1).expand(3, 4)},
        "dtypes": [torch.ones(2, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8,
                                                          torch.bool, torch.float64)],
        "parameter": {"p": torch.nn.Parameter(torch.ones(2))},
        "module": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "deepspeed": {"module": collections.OrderedDict(w=weight), "ds_config": {"train_batch_size": 8}, "ds_version": "0.19.8",
                      "param_shapes": [collections.OrderedDict(w=torch.Size([2, 3]))], "skipped_steps": 0, "global_steps": 3,
                      "dp_world_size": 2, "optimizer": None, "shared_params": {}, "frozen_param_shapes": None},
        "partition": {"optimizer_state_dict": {"zero_stage": 2, "partition_count": [2], "single_partition_of_fp32_groups":
                      [torch.ones(4)], "base_optimizer_state": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}}}},
        "containers": [{1, 2}, frozenset({3}), collections.defaultdict(list, a=[1]), collections.Counter("aab"), complex(1, 2)],
    }


def torch_files() -> None:
    for name, state in states().items():
        buffer = io.BytesIO()
        torch.save(state, buffer)
        put("torch_archive", name, buffer.getvalue())
        reader = torch._C.PyTorchFileReader(io.BytesIO(buffer.getvalue()))
        put("pickle", name, reader.get_record("data.pkl"))
    for protocol in range(6):
        for name in ("plain", "numbers"):
            put("pickle", f"{name}_{protocol}", pickle.dumps(states()[name], protocol=protocol))
    put("pickle", "command", b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
    put("pickle", "stack_global", pickle.dumps(pathlib.PurePosixPath("/tmp"), protocol=4))


def safetensors_files() -> None:
    files = {
        "one": ({"weight": torch.arange(6, dtype=torch.float32).reshape(2, 3)}, {}),
        "empty": ({}, {}),
        "empty_tensor": ({"nothing": torch.zeros(0, 4)}, {"format": "pt"}),
        "scalar": ({"step": torch.tensor(3)}, {}),
        "kinds": ({str(kind): torch.ones(2, dtype=kind) for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16,
                                                                    torch.int8, torch.uint8, torch.bool)}, {"a": "b", "c": "\u00e4"}),
        "many": ({f"layers.{i}.weight": torch.full((i,), float(i)) for i in range(9)}, {}),
    }
    for name, (tensors, metadata) in files.items():
        content = safetensors.torch.save(tensors, metadata or None)
        put("safetensors_file", name, content)
        length = struct.unpack("<Q", content[:8])[0]
        put("safetensors_header", name, struct.pack("<Q", 2 * (len(content) - 8 - length)) + content[8:8 + length])


def texts() -> None:
    found = sorted(ROOT.glob("examples/**/*ds_config*.json")) + sorted(ROOT.glob("examples/**/zero*.json"))
    for path in found:
        put("config", "_".join(path.relative_to(ROOT / "examples").parts), path.read_bytes())
    sections: dict[str, dict] = {
        "batch": {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto"},
        "elasticity": {"elasticity": {"enabled": True, "max_train_batch_size": 2000, "micro_batch_sizes": [2, 4, 6], "min_gpus": 1,
                                      "max_gpus": 64, "version": 0.2, "num_gpus_per_node": 8, "model_parallel_size": 2}},
        "zero": {"train_batch_size": 2, "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp", "ratio": 0.5},
                 "offload_param": {"device": "cpu", "pin_memory": True}, "stage3_prefetch_bucket_size": 5e7, "sub_group_size": 1e9}},
        "precision": {"train_batch_size": 2, "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}, "communication_data_type": "fp16"},
        "optimizer": {"train_batch_size": 2, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999]}},
                      "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10, "total_num_steps": "auto"}}},
        "checkpoint": {"train_batch_size": 2, "checkpoint": {"tag_validation": "Warn", "use_node_local_storage": False}, "data_types": {"grad_accum_dtype": "fp32"}},
        "compression": {"train_batch_size": 2, "compression_training": {"weight_quantization": {"shared_parameters": {"enabled": True},
                        "different_groups": {"g": {"params": {"start_bits": 8, "target_bits": 4}, "modules": ["a"]}}}}},
        "parallel": {"train_batch_size": 2, "pipeline": {"stages": 2}, "tensor_parallel": {"autotp_size": 2}, "sequence_parallel_size": 1},
    }
    for name, section in sections.items():
        put("config", name, json.dumps(section).encode())
    dialect = b'{ // comment\n "a": [1, 2.5e3, -Infinity,], # end\n "b": {"c": null, /* x */ "d": "\\u00e9\\n"}, "e": Infinity, }'
    put("json_text", "dialect", dialect)
    put("json_text", "nested", b"[" * 63 + b"]" * 63)
    put("json_text", "duplicates", b'{"a": {"b": 1, "b": 2}, "a": 3}')
    put("json_text", "base64", b"eyJ0cmFpbl9iYXRjaF9zaXplIjogOH0=")
    put("config", "dialect", b'{"train_batch_size": 8, // comment\n "steps_per_print": Infinity, "optimizer.params.lr": 1, }')


def manifest(files: list, tensors: list, **more: object) -> bytes:
    listed = [file if isinstance(file, dict) else {"name": file[0], "bytes": file[1], "xxh3": ["0123456789abcdef"] * -(-file[1] // (1 << 20))}
              for file in files]
    named = [{"name": name, "dtype": dtype, "shape": shape, "slices": slices} for name, dtype, shape, slices in tensors]
    return json.dumps({"format": "deepscale.checkpoint", "version": 1, "layout": "native", "tag": "global_step10", "block_bytes": 1 << 20,
                       "files": listed, "tensors": named, "info": {"world": 2, "stage": 3}, "checksum": "0" * 16, **more}).encode()


def manifests() -> None:
    newer = {"name": "rank_00000.safetensors", "bytes": 150_000, "block_bytes": 1 << 16, "xxh3": "0123456789abcdef" * 3}
    files = [("rank_00000.safetensors", 1000), ("rank_00001.safetensors", 5 << 20), ("common.pt", 300)]
    halves = ("fp32/weight", "float32", [4, 8], [[0, 64, 0, 16], [1, 64, 16, 16]])
    huge = 2**62
    cases = {
        "whole": (files, [halves, ("module/table", "bfloat16", [3], [[0, 400, 0, 3]]), ("exp_avg/none", "int64", [0, 4], [])]),
        "deepspeed": ([("mp_rank_00_model_states.pt", 77)], []),
        "part": (files[:1], [("fp32/weight", "float32", [4, 8], [[0, 64, 16, 16]])]),
        "scalar": (files, [("exp_avg/step", "float64", [], [[0, 8, 0, 1]])]),
        "overlap": (files, [("a", "float32", [8], [[0, 64, 0, 5], [0, 84, 4, 4]])]),
        "same_bytes": (files, [("a", "float32", [8], [[0, 64, 0, 8]]), ("b", "float32", [8], [[0, 80, 0, 8]])]),
        "hole": (files, [("a", "float32", [8], [[0, 64, 0, 3], [0, 84, 4, 4]])]),
        "outside": (files, [("a", "float32", [300], [[0, 0, 0, 300]])]),
        "huge_shape": (files, [("a", "float32", [huge, huge], [[0, 0, 0, huge]])]),
        "huge_slice": (files, [("a", "float32", [8], [[0, huge, huge, huge]])]),
        "no_file": (files, [("a", "float32", [8], [[3, 0, 0, 8]])]),
        "escape": ([("../latest", 4)], []),
        "absolute": ([("/etc/passwd", 4)], []),
        "twice": ([files[0], files[0]], [halves, halves]),
    }
    for name, (listed, tensors) in cases.items():
        put("manifest", name, manifest(listed, tensors, **({"layout": "deepspeed"} if name == "deepspeed" else {})))
    put("manifest", "version", manifest(files, [halves], version=2))
    put("manifest", "blocks", manifest(files, [halves], block_bytes=1))
    put("manifest", "newer", manifest([newer], [("fp32/weight", "float32", [4, 8], [[0, 70_000, 0, 32]])]))
    put("manifest", "few_checksums", manifest([{**newer, "bytes": 1 << 20}], []))
    put("manifest", "info", manifest(files, [halves], info=[1]))


if __name__ == "__main__":
    torch.manual_seed(1)
    torch_files()
    safetensors_files()
    texts()
    manifests()
    total = sum(path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file())
    print(f"{total} bytes in {sum(1 for path in (HERE / 'corpus').rglob('*') if path.is_file())} files")
