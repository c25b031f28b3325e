"""Which programs run.sh runs, by which command lines, and what must be there afterwards.

A command is what a user types, for bash, in a folder that has the program's files and the inputs under the names that the program uses.
Options that the founding command lines do not have make runs short (sizes, epochs) or keep files inside the folder.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CIFAR, HELLO = "training/cifar", "training/HelloDeepSpeed"
CHAT, INFERENCE = "applications/DeepSpeed-Chat", "inference/huggingface/zero_inference"
HF_PROGRAMS = {"transformers": "4", "datasets": "", "accelerate": ""}

Check = Callable[[str, Path], None]


class Problem(Exception):
    """The program ended well and did not do what it should have."""


@dataclass(frozen=True)
class Program:
    """One command line. `files`: path inside a checkout (or this repository) whose entries are linked into the run's folder."""

    name: str
    command: str  # {port} is replaced by a free one
    checks: tuple[Check, ...]
    files: str = ""
    of_checkout: bool = True
    needs: dict[str, str] = field(default_factory=dict)  # package -> how its version starts
    paths: tuple[str, ...] = ()  # put before PYTHONPATH; {checkout} and {tests} are replaced
    folder: str = ""  # runs of one folder see each other's outputs; the first of them empties it
    not_built: str = ""  # the feature in whose name the package refuses this program today


def falls(pattern: str) -> Check:
    """The first group of all matches are losses: finite, and the last is below the first."""

    def check(output: str, folder: Path) -> None:
        losses = [float(text) for text in re.findall(pattern, output)]
        if len(losses) < 2:
            raise Problem(f"{len(losses)} losses printed, expected at least 2 like /{pattern}/")
        if not all(math.isfinite(loss) for loss in losses) or losses[-1] >= losses[0]:
            raise Problem(f"the loss did not fall: {losses[0]} at first, {losses[-1]} at the end")

    return check


def prints(pattern: str, at_least: float | None = None) -> Check:
    """The output has the pattern; its first group is a number of at least `at_least`."""

    def check(output: str, folder: Path) -> None:
        found = re.search(pattern, output)
        if found is None:
            raise Problem(f"nothing like /{pattern}/ was printed")
        if at_least is not None and not float(found[1]) >= at_least:
            raise Problem(f"/{pattern}/ is {found[1]}, expected at least {at_least}")

    return check


def leaves(*patterns: str) -> Check:
    """Files with content that a glob pattern finds in the run's folder."""

    def check(output: str, folder: Path) -> None:
        for pattern in patterns:
            if not any(path.is_file() and path.stat().st_size > 0 for path in folder.glob(pattern)):
                raise Problem(f"no {pattern} was written")

    return check


def loads_whole(file: str, name: str, shape: tuple[int, ...]) -> Check:
    """torch.load finds the weight with its whole shape, and no number in the file is infinite."""

    def check(output: str, folder: Path) -> None:
        import torch
        weights = torch.load(folder / file, map_location="cpu", weights_only=True)
        if name not in weights or tuple(weights[name].shape) != shape:
            found = tuple(weights[name].shape) if name in weights else "nothing"
            raise Problem(f"{file}: expected {name} of shape {shape}, found {found}")
        bad = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise Problem(f"{file}: {bad[0]} has values that are not finite")

    return check


def goes_on(first: str, resumed: str) -> Check:
    """The resumed run's first loss is below the first loss of the run before, whose log is read."""

    def check(output: str, folder: Path) -> None:
        before = re.search(r"Loss: ([\d.]+)", (folder.parent.parent / "logs" / f"{first}.log").read_text(encoding="utf-8"))
        after = re.search(r"Loss: ([\d.]+)", output)
        if before is None or after is None or float(after[1]) >= float(before[1]):
            raise Problem(f"{resumed} did not go on: first losses {before and before[1]} before, {after and after[1]} after")

    return check


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cifar() -> list[Program]:
    def program(name: str, command: str, *checks: Check, **more: str) -> Program:
        return Program(f"CIFAR-10, {name}", command, checks, CIFAR, paths=("{tests}/stand_ins",), **more)

    learnt = prints(r"Accuracy of the network on the 40 test images:\s+(\d+) %", at_least=30)  # a guess: 10
    short = (falls(r"loss:\s+([\d.]+)"), prints("Finished Training"))
    base = "cifar10_deepspeed.py --deepspeed"
    runs = [program("as documented", f"deepspeed {base}", prints("Finished Training"), learnt),
            program("run_ds.sh", "bash run_ds.sh -e 6 --log-interval 10", *short)]
    runs += [program(f"stage {stage}, {dtype}", f"deepspeed {base} --stage {stage} --dtype {dtype} -e 4 --log-interval 10", *short)
             for stage in range(4) for dtype in ("fp32", "bf16", "fp16")]
    runs += [program(f"2 ranks, stage {stage}", f"deepspeed --num_gpus 2 {base} --stage {stage} --dtype bf16 -e 4 --log-interval 10", *short)
             for stage in (2, 3)]
    moe = "mixture of experts"
    runs += [program("mixture of experts", "bash run_ds_moe.sh", *short, not_built=moe),
             program("residual mixture of experts", "bash run_ds_prmoe.sh", *short, not_built=moe)]
    return runs


def hello() -> list[Program]:
    needs = {"transformers": "", "datasets": "", "fire": "", "loguru": "", "pytz": "", "sh": "1.", "tensorboard": ""}
    small = "--num_layers 1 --num_heads 2 --ff_dim 64 --h_dim 64 --max_seq_length 32 --log_every 10 --checkpoint_every 30"
    loss = falls(r"Loss: ([\d.]+)")
    train, resume = "HelloDeepSpeed BERT", "HelloDeepSpeed BERT, resumed"
    both = {"files": HELLO, "needs": needs, "folder": "hello"}
    return [Program(train, f"deepspeed train_bert_ds.py --checkpoint_dir experiment_deepspeed --num_iterations 70 {small}",
                    (loss, leaves("experiment_deepspeed/*/latest", "experiment_deepspeed/*/global_step69/*optim_states.pt")), **both),
            Program(resume, "deepspeed train_bert_ds.py --load_checkpoint_dir experiment_deepspeed/* --num_iterations 100",
                    (loss, goes_on(slug(train), resume), leaves("experiment_deepspeed/*/global_step9?/*optim_states.pt")), **both)]


def chat() -> list[Program]:
    weights = loads_whole("output/pytorch_model.bin", "model.decoder.layers.0.self_attn.q_proj.weight", (64, 64))
    checks = (falls(r"ppl: ([\d.]+)"), leaves("output/config.json", "output/vocab.json"), weights)

    def program(name: str, options: str, launcher: str = "deepspeed", check: tuple[Check, ...] = checks) -> Program:
        command = (f"{launcher} training/step1_supervised_finetuning/main.py --model_name_or_path facebook/opt-125m {options} "
                   "--output_dir output --data_output_path data_files")
        return Program(f"DeepSpeed-Chat step 1, {name}", command, check, CHAT, needs=HF_PROGRAMS, paths=("{checkout}/" + CHAT,))

    documented = "--gradient_accumulation_steps 8 --lora_dim 128 --only_optimize_lora --print_loss --zero_stage {} --deepspeed --dtype bf16 --offload"
    short = "--gradient_accumulation_steps 2 --max_seq_len 64 --deepspeed"
    printed = (*checks, prints(r"Epoch: 0, Step: 0, Rank: 0, loss = ([\d.]+)"))
    return [program("stage 2", documented.format(2), check=printed), program("stage 3", documented.format(3), check=printed),
            program("stage 3, 2 ranks", documented.format(3), "deepspeed --num_gpus 2", printed),
            program("fp16, all weights and LoRA", f"{short} --zero_stage 2 --lora_dim 16"),
            program("fp16, checkpointed activations", f"{short} --zero_stage 3 --gradient_checkpointing --compute_fp32_loss")]


def zero_inference() -> list[Program]:
    def program(name: str, options: str) -> Program:
        command = f"deepspeed run_model.py --model meta-llama/Llama-2-7b-hf --batch-size 64 --prompt-len 8 --gen-len 32 {options}"
        checks = (prints(r"total throughput: ([\d.]+) token/s", at_least=0.001), leaves("ds-*.log"))
        return Program(f"ZeRO-Inference, {name}", command, checks, INFERENCE, needs={"transformers": "4", "accelerate": ""},
                       paths=("{tests}/stand_ins/cuda",))

    return [program("weights in host memory", "--cpu-offload"), program("weights in files", "--disk-offload --offload-dir offload"),
            program("4 bits", "--cpu-offload --quant_bits 4")]


def gpt_like() -> list[Program]:
    sizes = "--n_layer 1 --d_model 64 --n_head 2 --block_size 32 --epochs 2 --max_bytes 60000"
    trained = (falls(r"micro-batch \d+: loss ([\d.]+)"), loads_whole("out/model.pt", "embedding.weight", (256, 64)))
    saved = (*trained, leaves("out/epoch2/*optim_states.pt", "out/latest"))

    def program(name: str, command: str, checks: tuple[Check, ...]) -> Program:
        return Program(f"GPTLike, {name}", command, checks, "examples/gpt_like", of_checkout=False)

    runs = [program("base", f"python GPTLike-Base.py {sizes}", trained)]
    runs += [program(f"ZeRO-{kind}", f"deepspeed --num_gpus 2 DeepSpeed-GPTLike-ZeRO-{kind}.py {sizes}", saved)
             for kind in ("1", "2", "3", "Offload")]
    machine = "torchrun --nnodes=2 --nproc_per_node=1 --node_rank={rank} --master_addr=127.0.0.1 --master_port={{port}} " \
        f"DeepSpeed-GPTLike-Multihosts.py --ds_config ds_config.json {sizes}"
    both = f"{machine.format(rank=1)} & {machine.format(rank=0)} && wait $!"
    return runs + [program("Multihosts", both, saved)]


def small_commands() -> list[Program]:
    version = "python -c 'import deepspeed; print(deepspeed.__version__)'"
    return [Program("version", version, (prints(r"^\d+\.\d+\.\d+"),), of_checkout=False),
            Program("ds_report", "ds_report", (prints("torch"),), of_checkout=False)]


def all_programs() -> list[Program]:
    return [*small_commands(), *gpt_like(), *cifar(), *hello(), *chat(), *zero_inference()]
