// Equality with Transformers is tested from Python (tests/python/test_llama_cpp.py); here: places of weights, caches,
// and what goes wrong.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "deepscale/error.h"
#include "deepscale/inference.h"
#include "inference/decoder_model.h"
#include "inference/test_models.h"

namespace deepscale {
namespace {

using test::Folder;

const at::Tensor& prompt() {
  static const at::Tensor kPrompt = at::arange(1, 13, at::kLong).view({2, 6});
  return kPrompt;
}

struct TinyLlama {
  explicit TinyLlama(nlohmann::json config = test::llama_config(), test::Tensors tensors = test::llama_tensors())
      : folder("llama") {
    folder.write("config.json", config.dump());
    test::write_tensors(folder.file("model.safetensors"), tensors);
  }
  [[nodiscard]] std::unique_ptr<CausalLm> open(const CausalLmOptions& options = {}) const {
    return CausalLm::open(folder.path(), options);
  }
  Folder folder;
};

std::string error_of(const TinyLlama& model, const CausalLmOptions& options = {}) {
  try {
    (void)model.open(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

TEST(CausalLm, WeightsInAFileGiveTheBitsOfWeightsInMemory) {
  const TinyLlama model;
  const Folder files("files");
  const at::Tensor expected = model.open()->forward(prompt());
  for (const std::optional<int64_t> resident : {std::optional<int64_t>(0), std::optional<int64_t>(2000), {}}) {
    const auto streamed = model.open({.weights_folder = files.path(), .max_resident = resident});
    for (int pass = 0; pass < 3; ++pass) {
      streamed->reset();
      EXPECT_TRUE(streamed->forward(prompt()).equal(expected));
    }
    if (resident == 0) {
      EXPECT_GT(streamed->facts().file_read_bytes, 0);
    }
  }
}

TEST(CausalLm, TokenByTokenIsTheWholeText) {
  const TinyLlama model;
  const auto whole = model.open();
  const at::Tensor expected = whole->forward(prompt());
  const auto stepped = model.open();
  std::vector<at::Tensor> parts = {stepped->forward(prompt().narrow(1, 0, 2))};
  parts.push_back(stepped->forward(prompt().narrow(1, 2, 3)));
  parts.push_back(stepped->forward(prompt().narrow(1, 5, 1)));
  EXPECT_TRUE(at::cat(parts, 1).allclose(expected, 1e-4, 1e-5));
}

TEST(CausalLm, GenerationAppendsTheMostProbableToken) {
  const TinyLlama model;
  const auto lm = model.open();
  const at::Tensor ids = lm->generate(prompt(), 4);
  EXPECT_EQ(ids.sizes(), (std::vector<int64_t>{2, 10}));
  lm->reset();
  const at::Tensor logits = lm->forward(ids.narrow(1, 0, 9));
  EXPECT_TRUE(logits.select(1, 8).argmax(-1).equal(ids.select(1, 9)));
  EXPECT_TRUE(lm->generate(prompt(), 0).equal(prompt()));
}

TEST(CausalLm, FewerBitsAreNearlyTheSameModel) {
  const TinyLlama model;
  const Folder files("files");
  const at::Tensor expected = model.open()->forward(prompt());
  const double spread = expected.std().item<double>();
  for (const int bits : {8, 4}) {
    const at::Tensor inside = model.open({.bits = bits, .group_size = 16})->forward(prompt());
    EXPECT_LT((inside - expected).abs().mean().item<double>(), (bits == 8 ? 0.02 : 0.4) * spread) << bits;
    const auto streamed =
        model.open({.weights_folder = files.path(), .max_resident = 0, .bits = bits, .group_size = 16});
    EXPECT_TRUE(streamed->forward(prompt()).equal(inside)) << bits;
  }
}

TEST(CausalLm, EveryByteOfTheCheckpointIsReadOnce) {
  const test::Tensors tensors = test::llama_tensors();
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<int64_t>(tensor.nbytes());
  const CausalLmFacts facts = TinyLlama().open()->facts();
  EXPECT_EQ(facts.checkpoint_bytes, bytes);
  EXPECT_EQ(facts.weight_bytes, bytes);
  EXPECT_EQ(facts.parameters, bytes / 4);
}

TEST(CausalLm, OtherDtypesAreConvertedWhileTheyAreRead) {
  const TinyLlama stored(test::llama_config(), test::llama_tensors(at::kBFloat16));
  test::Tensors wide;
  for (const auto& [name, tensor] : test::llama_tensors(at::kBFloat16)) wide[name] = tensor.to(at::kFloat);
  EXPECT_TRUE(stored.open()->forward(prompt()).equal(TinyLlama(test::llama_config(), wide).open()->forward(prompt())));
}

TEST(CausalLm, TiedHeadsShareTheEmbedding) {
  nlohmann::json config = test::llama_config();
  config["tie_word_embeddings"] = true;
  test::Tensors tied = test::llama_tensors();
  tied.erase("lm_head.weight");
  test::Tensors twice = tied;
  twice["lm_head.weight"] = tied["model.embed_tokens.weight"];
  const at::Tensor expected = TinyLlama(test::llama_config(), twice).open()->forward(prompt());
  EXPECT_TRUE(TinyLlama(config, tied).open()->forward(prompt()).equal(expected));
}

TEST(CausalLm, BadModelsAreNamed) {
  const auto with = [](const char* key, const nlohmann::json& value) {
    nlohmann::json config = test::llama_config();
    config[key] = value;
    return error_of(TinyLlama(config));
  };
  EXPECT_NE(with("model_type", "gru").find("llama, mistral and opt"), std::string::npos);
  EXPECT_NE(with("hidden_size", "32").find("\"hidden_size\" is \"32\"; an integer"), std::string::npos);
  EXPECT_NE(with("hidden_size", 0).find("1 to 2^31"), std::string::npos);
  EXPECT_NE(with("vocab_size", 41).find("has shape [40, 32], and config.json says [41, 32]"), std::string::npos);
  EXPECT_NE(with("rope_scaling", {{"rope_type", "yarn"}}).find("\"yarn\""), std::string::npos);
  EXPECT_NE(with("num_key_value_heads", 3).find("multiple"), std::string::npos);
  test::Tensors missing = test::llama_tensors();
  missing.erase("model.layers.1.mlp.up_proj.weight");
  EXPECT_NE(error_of(TinyLlama(test::llama_config(), missing)).find("no tensor model.layers.1.mlp.up_proj.weight"),
            std::string::npos);
  EXPECT_NE(error_of(TinyLlama(), {.bits = 3}).find("bits is 3"), std::string::npos);
  EXPECT_NE(error_of(TinyLlama(), {.dtype = "int8"}).find("int8"), std::string::npos);
}

TEST(CausalLm, BadIdsAreNamed) {
  const TinyLlama model;
  const auto lm = model.open();
  EXPECT_THROW((void)lm->forward(at::full({1, 2}, 40, at::kLong)), Error);
  EXPECT_THROW((void)lm->forward(at::zeros({1, 65}, at::kLong)), Error);
  EXPECT_THROW((void)lm->forward(at::zeros({2}, at::kLong)), Error);
  (void)lm->forward(prompt());
  EXPECT_THROW((void)lm->forward(at::zeros({3, 1}, at::kLong)), Error);
  lm->reset();
  (void)lm->forward(at::zeros({3, 1}, at::kLong));
}

/// Two layers that only fill their caches; the second one fails when it is told to.
class FailingDecoder final : public DecoderModel {
 public:
  explicit FailingDecoder(const std::string& folder)
      : DecoderModel(std::make_unique<ModelFolder>(ModelFolder::open(folder)), CausalLmOptions{}) {
    sizes_ = {40, 2, 64};
  }
  bool fails = true;

 protected:
  at::Tensor embed(const at::Tensor& ids, int64_t /*first*/) final { return ids.to(at::kFloat); }
  at::Tensor layer(int64_t index, const at::Tensor& hidden, int64_t /*first*/) final {
    if (index == 1 && fails) throw Error("a weight that cannot be read");
    const at::Tensor keys = hidden.view({hidden.size(0), 1, hidden.size(1), 1});
    cache(index).append(keys, keys);
    return cache(index).keys().sum({1, 3});
  }
  at::Tensor head(const at::Tensor& hidden) final { return hidden; }
};

TEST(CausalLm, AFirstPassThatFailedLeavesNoBatchBehind) {
  const TinyLlama model;
  FailingDecoder decoder(model.folder.path());
  EXPECT_THROW((void)decoder.forward(prompt()), Error);
  decoder.fails = false;
  const at::Tensor other = at::full({3, 2}, 4, at::kLong);
  EXPECT_TRUE(decoder.forward(other).equal(other.to(at::kFloat)));
}

}  // namespace
}  // namespace deepscale
