"""Makes, without a network, what the integrations' tests load: tiny models, tokenizers, a data set and a metric.

    python make_models.py FOLDER

In FOLDER everything has the name that the hub gives it, where Transformers, Datasets and Evaluate look first when a test runs there.
Models have random weights and the architecture of their namesakes. The one exception: tests of accuracy start from trained weights and
want 0.82 after three short epochs, so the data set's labels are nine tenths ones and the classifiers' last bias already prefers a one.
"""
from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from make_inputs import byte_pairs, main, sentences  # noqa: E402

METRIC = '''"""Accuracy and F1 of two classes, in place of the hub's "glue" metric."""
import datasets
import evaluate


class Glue(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references))
        hits, wrong = sum(p == r == 1 for p, r in pairs), sum(p != r for p, r in pairs)
        return {"accuracy": 1 - wrong / len(pairs), "f1": 2 * hits / max(1, 2 * hits + wrong)}
'''


def make_gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(folder)
    _save_byte_pairs(folder)


def make_gptj(folder: Path) -> None:
    from transformers import GPTJConfig, GPTJForCausalLM
    GPTJForCausalLM(GPTJConfig(vocab_size=1024, n_positions=512, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)).save_pretrained(folder)


def make_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    shape = LlamaConfig(vocab_size=512, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                        max_position_embeddings=512)
    LlamaForCausalLM(shape).save_pretrained(folder)
    _save_byte_pairs(folder)


def make_qwen2(folder: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    shape = Qwen2Config(vocab_size=512, hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        max_position_embeddings=512)
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    _save_byte_pairs(folder)


def make_qwen2_moe(folder: Path) -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
    shape = Qwen2MoeConfig(vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                           num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
                           max_position_embeddings=64)
    Qwen2MoeForCausalLM(shape).save_pretrained(folder)


def make_mobilevit(folder: Path) -> None:
    """Its configuration: the tests read hidden_sizes from it."""
    from transformers import MobileViTConfig
    MobileViTConfig().save_pretrained(folder)


def make_t5(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer
    shape = T5Config(vocab_size=1024, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(shape).save_pretrained(folder)
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.train_from_iterator(sentences(400, seed=1), trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    vocabulary = [(piece, score) for piece, score in json.loads(unigram.to_str())["model"]["vocab"]]
    T5Tokenizer(vocab=vocabulary, extra_ids=100).save_pretrained(folder)


def _save_byte_pairs(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast
    PreTrainedTokenizerFast(tokenizer_object=byte_pairs(["<unk>", "<s>", "</s>"]), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                            pad_token="</s>", model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)


def _save_word_pieces(folder: Path, names: list[str]) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(sentences(400, seed=1), vocab_size=400, show_progress=False)
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, model_input_names=names, **specials).save_pretrained(folder)


def _prefer_ones(head: Any) -> None:
    import torch
    head.bias.data = torch.tensor([0.0, 1.0])


def make_bert(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification
    model = BertForSequenceClassification(BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                                     intermediate_size=64, max_position_embeddings=128))
    _prefer_ones(model.classifier)
    model.save_pretrained(folder)
    _save_word_pieces(folder, ["input_ids", "token_type_ids", "attention_mask"])


def make_distilbert(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=512, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                                                                 max_position_embeddings=128))
    _prefer_ones(model.classifier)
    model.save_pretrained(folder)
    _save_word_pieces(folder, ["input_ids", "attention_mask"])


def make_glue(folder: Path) -> None:
    """nyu-mll/glue, mrpc: pairs of sentences and a label, nine of ten a one."""
    source = random.Random(4)
    (folder / "mrpc").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 192), ("validation", 96), ("test", 96)):
        texts = list(sentences(2 * count, seed=count))
        rows = [{"sentence1": texts[2 * i], "sentence2": texts[2 * i + 1], "label": int(source.random() < 0.9), "idx": i} for i in range(count)]
        (folder / "mrpc" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = "".join(f"  - split: {split}\n    path: mrpc/{split}.jsonl\n" for split in ("train", "validation", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: mrpc\n  data_files:\n{files}---\n", encoding="utf-8")


def make_metric(folder: Path) -> None:
    (folder / "glue.py").write_text(METRIC, encoding="utf-8")


PARTS = {
    "sshleifer/tiny-gpt2": make_gpt2, "gpt2": make_gpt2, "hf-internal-testing/tiny-random-gpt2": make_gpt2,
    "hf-internal-testing/tiny-random-gptj": make_gptj, "hf-internal-testing/tiny-random-LlamaForCausalLM": make_llama,
    "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5": make_qwen2, "peft-internal-testing/tiny-random-qwen-1.5-MoE": make_qwen2_moe,
    "apple/mobilevit-xx-small": make_mobilevit, "patrickvonplaten/t5-tiny-random": make_t5, "bert-base-cased": make_bert,
    "distilbert-base-uncased": make_distilbert, "nyu-mll/glue": make_glue, "glue": make_metric,
}


if __name__ == "__main__":
    sys.exit(main(PARTS))
