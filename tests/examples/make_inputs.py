"""Makes, without a network, what the example programs load: tiny models, tokenizers and data sets.

    python make_inputs.py FOLDER

In FOLDER everything has the name that the hub gives it (facebook/opt-125m, wikitext, ...): Transformers and Datasets prefer a folder
of that relative path, so a program that runs in FOLDER finds it with its own defaults. Models have random weights and the architecture
of their namesakes, texts come from a small grammar: learnt within a few steps, and the same on every machine.
"""
from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

SUBJECTS = ("the old miller", "a young sailor", "the queen", "my neighbour", "a tired engineer", "the baker", "his sister", "a grey cat")
VERBS = ("opened", "painted", "sold", "described", "lost", "repaired", "remembered", "carried")
OBJECTS = ("the wooden gate", "a letter", "two boats", "the broken clock", "a basket of apples", "the map of Paris", "a song", "the bridge")
PLACES = ("near the river", "in the capital city", "at the market", "behind the mill", "before the winter", "during the storm")
ZERO_INFERENCE_PROMPT = "Paris is the capital city of"  # run_model.py's; its tokens must fit into --prompt-len


def sentences(count: int, seed: int) -> Iterator[str]:
    source = random.Random(seed)
    for _ in range(count):
        yield " ".join(source.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, PLACES)).capitalize() + "."


def byte_pairs(specials: list[str]) -> Any:
    """A byte-level BPE tokenizer over the grammar, 500 entries at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [*sentences(400, seed=1), *[ZERO_INFERENCE_PROMPT] * 40, *[f" Human: What did {s} do? Assistant: " for s in SUBJECTS] * 5]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def make_opt(folder: Path) -> None:
    """facebook/opt-125m: its tokenizer is of GPT-2's class and saves vocab.json and merges.txt, which DeepSpeed-Chat writes at its end."""
    from transformers import GPT2TokenizerFast, OPTConfig, OPTForCausalLM
    shape = OPTConfig(vocab_size=512, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
                      max_position_embeddings=512, init_std=0.1)
    OPTForCausalLM(shape).save_pretrained(folder)
    model = json.loads(byte_pairs(["</s>", "<pad>", "<unk>"]).to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    GPT2TokenizerFast.from_pretrained(folder, bos_token="</s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)


def make_llama(folder: Path) -> None:
    """meta-llama/Llama-2-7b-hf in fp16. It never ends a text early: run_model.py compares lengths."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    shape = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                        max_position_embeddings=128, eos_token_id=None, bos_token_id=1, dtype="float16")
    model = LlamaForCausalLM(shape).half()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_pairs(["<unk>", "<s>", "</s>"]), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                            model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)


def make_roberta_tokenizer(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast, RobertaConfig
    specials = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=byte_pairs(list(specials.values())), cls_token="<s>", sep_token="</s>",
                            **specials).save_pretrained(folder)
    RobertaConfig(vocab_size=500).save_pretrained(folder)


def make_wikitext(folder: Path) -> None:
    """The configurations that the programs name, as JSON lines; README.md tells Datasets where they are."""
    names = ("wikitext-2-v1", "wikitext-2-raw-v1")
    for name in names:
        (folder / name).mkdir(parents=True)
        rows = [{"text": " ".join(sentences(3, seed=number))} for number in range(600)] + [{"text": ""}]
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entries = "".join(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.jsonl\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n", encoding="utf-8")


def make_dialogues(folder: Path) -> None:
    """Dahoas/rm-static. A fifth of the rows trains step 1: eight steps of 8 micro-batches of 16."""
    from datasets import Dataset, DatasetDict
    source = random.Random(3)
    rows = []
    for answer in sentences(5120, seed=2):
        question = f" Human: What did {source.choice(SUBJECTS)} do? Assistant:"
        rows.append({"prompt": question, "response": " " + answer, "chosen": " " + answer, "rejected": " Nothing."})
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:160])).save_to_disk(folder)


PARTS = {"facebook/opt-125m": make_opt, "meta-llama/Llama-2-7b-hf": make_llama, "roberta-base": make_roberta_tokenizer,
         "wikitext": make_wikitext, "Dahoas/rm-static": make_dialogues}


def main(parts: dict[str, Callable[[Path], None]]) -> int:
    """Makes every part in a folder of its name, below the one that the command line names."""
    import torch
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} FOLDER", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    for name, make in parts.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(PARTS))
