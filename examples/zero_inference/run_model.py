"""Generates with a model that need not fit: ZeRO-Inference over Transformers, weights on the host or on disk, in 16, 8 or 4 bits.

    deepspeed run_model.py --model /path/of/a/hugging-face/folder --batch-size 8 --prompt-len 8 --gen-len 32 --disk-offload \
        --offload-dir /local/disk --quant_bits 4
    deepspeed run_model.py --model tiny-llama --dummy --cpu-offload

--model is a folder (config.json, safetensors), a name of random_weights.py (with --dummy), or a name that Transformers finds.
With --dummy weights are random and are written to --offload-dir once. Latency is that of the last of --loops runs.
"""
from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.deepspeed import HfDeepSpeedConfig

import deepspeed
from deepspeed.accelerator import get_accelerator

import random_weights

GB = 1 << 30
PROMPT = "Paris is the capital city of"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--dummy", action="store_true", help="random weights of the model's shape")
    parser.add_argument("--loops", type=int, default=3, help="generations; the last one is reported")
    parser.add_argument("--batch-size", type=int, default=1, help="prompts over all ranks")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", 0)))
    parser.add_argument("--pin-memory", type=int, default=0, help="1: page-locked host memory for offloaded weights")
    parser.add_argument("--cpu-offload", action="store_true", help="weights in host memory")
    parser.add_argument("--disk-offload", action="store_true", help="weights in files under --offload-dir")
    parser.add_argument("--offload-dir", type=Path, default=Path("~/offload_dir"))
    parser.add_argument("--max-in-cpu", type=int, help="elements that stay in host memory with --disk-offload (default: what fits)")
    parser.add_argument("--kv-offload", action="store_true", help="keys and values of earlier tokens in host memory")
    parser.add_argument("--log-file", default="auto", help="file to which the summary is appended")
    parser.add_argument("--verbose", type=int, default=2, help="0 nothing, 1 the summary, 2 generated text too")
    parser.add_argument("--quant_bits", type=int, choices=[4, 8, 16], default=16)
    parser.add_argument("--quant_group_size", type=int, default=64)
    parser.add_argument("--pin_kv_cache", action="store_true", help="accepted: offloaded caches are page-locked by Transformers")
    parser.add_argument("--async_kv_offload", action="store_true", help="accepted: Transformers copies offloaded caches ahead")
    parser.add_argument("--use_gds", action="store_true", help="read weights straight into GPU memory (needs a GPU with GPUDirect Storage)")
    args = parser.parse_args()
    args.offload_dir = args.offload_dir.expanduser().resolve()
    if args.cpu_offload and args.disk_offload:
        parser.error("--cpu-offload and --disk-offload exclude each other")
    if not args.dummy and args.model in random_weights.SHAPES:
        parser.error(f"--model {args.model} is a shape without weights: add --dummy")
    return args


def weights_folder(args: argparse.Namespace) -> str:
    """The folder to load; with --dummy rank 0 writes it first."""
    if not args.dummy:
        return args.model
    folder = args.offload_dir / f"{args.model.strip('/').replace('/', '-')}-random"
    if deepspeed.comm.get_rank() == 0 and not (folder / "model.safetensors.index.json").exists():
        config = random_weights.config_of(args.model)
        random_weights.write_model(config, folder, getattr(config, "torch_dtype", None) or torch.bfloat16)
    deepspeed.comm.barrier()
    return str(folder)


def ds_config(args: argparse.Namespace, config: object, dtype: torch.dtype) -> dict:
    hidden = config.hidden_size
    zero: dict = {"stage": 3, "stage3_prefetch_bucket_size": 2 * hidden * hidden, "stage3_param_persistence_threshold": hidden,
                  "stage3_max_live_parameters": 2 * hidden * hidden}
    if args.cpu_offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": bool(args.pin_memory)}
    if args.disk_offload:
        zero["offload_param"] = {"device": "nvme", "pin_memory": bool(args.pin_memory), "nvme_path": str(args.offload_dir),
                                 "buffer_count": 5, "buffer_size": 2 * GB}
        if args.max_in_cpu is not None:
            zero["offload_param"]["max_in_cpu"] = args.max_in_cpu
    settings: dict = {"zero_optimization": zero, "train_batch_size": max(args.batch_size, deepspeed.comm.get_world_size()),
                      "steps_per_print": 2000, "wall_clock_breakdown": False}
    if args.use_gds:
        settings["aio"] = {"use_gds": True}
    if dtype != torch.float32:
        settings["bf16" if dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
    if args.quant_bits < 16:
        settings["weight_quantization"] = {"quantized_initialization": {"num_bits": args.quant_bits, "group_size": args.quant_group_size,
                                                                        "group_dim": 1, "symmetric": False}}
    return settings


def load(args: argparse.Namespace, folder: str) -> tuple[torch.nn.Module, HfDeepSpeedConfig]:
    """The engine's module. The second value must live as long: Transformers looks at it while it loads."""
    config = AutoConfig.from_pretrained(folder)
    dtype = getattr(config, "torch_dtype", None) or torch.float16
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    settings = ds_config(args, config, dtype)
    under_zero_init = HfDeepSpeedConfig(settings)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype).eval()
    engine = deepspeed.initialize(model=model, config=settings)[0]
    engine.eval()
    return engine.module, under_zero_init


def prompts(args: argparse.Namespace, folder: str, vocabulary: int) -> tuple[dict[str, torch.Tensor], object]:
    """Token ids [prompts of this rank, prompt_len] and their mask, and the tokenizer if the folder has one."""
    count = max(1, args.batch_size // deepspeed.comm.get_world_size())
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    except Exception:  # every version of Transformers has its own error for a folder without a tokenizer
        ids = torch.randint(0, vocabulary, (1, args.prompt_len), generator=torch.Generator().manual_seed(0)).repeat(count, 1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None
    tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer([PROMPT] * count, return_tensors="pt", padding="max_length", max_length=args.prompt_len, truncation=True)
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}, tokenizer


class PassTimer:
    """Seconds of every forward of a module since the last start()."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds: list[float] = []
        module.register_forward_pre_hook(lambda *_: self._mark())
        module.register_forward_hook(lambda *_: self.seconds.append(self._now() - self._begun))

    def _now(self) -> float:
        get_accelerator().synchronize()
        return time.perf_counter()

    def _mark(self) -> None:
        self._begun = self._now()

    def start(self) -> None:
        self.seconds.clear()


def summary(args: argparse.Namespace, prefill_s: float, total_s: float) -> str:
    decode_s = max(total_s - prefill_s, 1e-9)
    generated = args.batch_size * args.gen_len
    return (f"model: {args.model}\tbits: {args.quant_bits}\tbatch: {args.batch_size}\n"
            f"peak device memory: {get_accelerator().max_memory_allocated() / GB:.3f} GB\n"
            f"prefill latency: {prefill_s:.3f} s\tprefill throughput: {args.batch_size * args.prompt_len / prefill_s:.3f} token/s\n"
            f"decode latency: {decode_s:.3f} s\tdecode throughput: {args.batch_size * (args.gen_len - 1) / decode_s:.3f} token/s\n"
            f"total latency: {total_s:.3f} s\ttotal throughput: {generated / total_s:.3f} token/s")


def log_name(args: argparse.Namespace) -> str:
    place = "cpu" if args.cpu_offload else "disk" if args.disk_offload else get_accelerator().device_name()
    extras = ("-kv_offload" if args.kv_offload else "") + (f"-w{args.quant_bits}" if args.quant_bits < 16 else "")
    ranks = deepspeed.comm.get_world_size()
    return f"ds-{args.model.rstrip('/').split('/')[-1]}-bs{args.batch_size}-prompt{args.prompt_len}-gen{args.gen_len}-n1x{ranks}-{place}{extras}.log"


def main() -> None:
    args = parse_arguments()
    deepspeed.init_distributed()
    args.offload_dir.mkdir(parents=True, exist_ok=True)
    folder = weights_folder(args)
    started = time.perf_counter()
    model, _keep = load(args, folder)
    inputs, tokenizer = prompts(args, folder, model.config.vocab_size)
    device = get_accelerator().current_device_name()
    inputs = {key: value.to(device) for key, value in inputs.items()}
    print(f"loaded in {time.perf_counter() - started:.1f} s", flush=True)
    options: dict = {"max_new_tokens": args.gen_len, "min_new_tokens": args.gen_len, "do_sample": False}
    if args.kv_offload and get_accelerator().device_name() != "cpu":  # on CPUs keys and values are in host memory anyway
        options["cache_implementation"] = "offloaded"
    timer = PassTimer(model)
    totals = []
    for _ in range(args.loops):
        timer.start()
        begun = time.perf_counter()
        with torch.no_grad():
            output = model.generate(**inputs, **options)
        totals.append(time.perf_counter() - begun)
    if args.local_rank != 0:
        return
    text = summary(args, timer.seconds[0], totals[-1])
    if args.verbose >= 2 and tokenizer is not None:
        print(f"first output: {tokenizer.decode(output[0], skip_special_tokens=True)}")
    if args.verbose >= 1:
        print(text)
    with open(log_name(args) if args.log_file == "auto" else args.log_file, "a", encoding="utf-8") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
