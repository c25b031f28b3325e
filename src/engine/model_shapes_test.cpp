#include "engine/model_shapes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "checkpoint/safetensors.h"
#include "deepscale/error.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;

const char* const kLlama2 = R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
  "num_attention_heads": 32, "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
  "torch_dtype": "float16", "tie_word_embeddings": false})";

int64_t numel_of(const std::string& json) {
  return shapes_from_config(json, "config.json").numel();
}

std::string error_of(const std::string& json) {
  try {
    (void)shapes_from_config(json, "config.json");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(ModelShapesTest, TotalsAreThosePublished) {
  EXPECT_EQ(numel_of(kLlama2), 6'738'415'616);
  EXPECT_EQ(numel_of(R"({"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000})"),
            7'241'732'096);
  EXPECT_EQ(numel_of(R"({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000,
    "num_local_experts": 8})"),
            46'702'792'704);
  EXPECT_EQ(numel_of(R"({"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 151936,
    "tie_word_embeddings": true})"),
            494'032'768);
  EXPECT_EQ(numel_of(R"({"model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32,
    "num_hidden_layers": 24, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048})"),
            1'315'758'080);
  EXPECT_EQ(numel_of(R"({"model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 512,
    "do_layer_norm_before": false})"),
            331'196'416);
  EXPECT_EQ(numel_of(R"({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "vocab_size": 50257})"),
            124'439'808);
  EXPECT_EQ(numel_of(R"({"model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048,
    "num_attention_heads": 8, "num_hidden_layers": 6, "vocab_size": 50304})"),
            70'426'624);
  EXPECT_EQ(numel_of(R"({"model_type": "bloom", "hidden_size": 1024, "n_layer": 24, "n_head": 16,
    "vocab_size": 250880})"),
            559'214'592);
  EXPECT_EQ(numel_of(R"({"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71,
    "num_hidden_layers": 32, "vocab_size": 65024, "multi_query": true, "parallel_attn": true, "bias": false})"),
            6'921'720'704);
}

TEST(ModelShapesTest, AbsurdSizesAreRefusedByNameAndAtOnce) {
  const auto llama = [](const std::string& key, const std::string& value) {
    std::string json = kLlama2;
    const size_t begin = json.find(":", json.find('"' + key + '"')) + 1;
    return json.replace(begin, json.find(',', begin) - begin, value);
  };
  EXPECT_EQ(error_of(llama("num_hidden_layers", "2000000000")),
            "config.json: \"num_hidden_layers\" must be a whole number from 1 to 10000, found 2000000000");
  EXPECT_EQ(error_of(llama("num_hidden_layers", "10000")), "");
  EXPECT_EQ(error_of(R"({"model_type": "gpt2", "n_embd": 8, "n_layer": 20000, "n_positions": 8, "vocab_size": 8})"),
            "config.json: \"n_layer\" must be a whole number from 1 to 10000, found 20000");
  for (const char* key : {"num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size"}) {
    for (const char* value : {"-1", "0", "1.5", "1e30", "18446744073709551615", "2147483648", "\"8\"", "true"}) {
      EXPECT_TRUE(error_of(llama(key, value)).starts_with("config.json: \"" + std::string(key) + "\" must be"))
          << value;
    }
  }
  EXPECT_EQ(error_of(llama("vocab_size", "1000000000")), "");
  EXPECT_NE(error_of(llama("hidden_size", "1073741824"))
                .find("model.layers.0.self_attn.q_proj.weight of shape [1073741824, 1073741824]"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"model_type": "mixtral", "hidden_size": 1073741824, "intermediate_size": 1073741824,
    "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 1, "num_local_experts": 1073741824})")
                .find("has more than 2^45 elements"),
            std::string::npos);
}

TEST(ModelShapesTest, ParametersHaveNamesDtypesAndUnits) {
  const ModelShapes shapes = shapes_from_config(kLlama2, "config.json");
  ASSERT_EQ(shapes.params.size(), 32u * 9 + 3);
  EXPECT_EQ(shapes.params.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(shapes.params.front().unit, "model.embed_tokens");
  EXPECT_EQ(shapes.params.front().dtype, DType::kFloat16);
  EXPECT_FALSE(shapes.params.front().tied);
  EXPECT_EQ(shapes.params.back().name, "lm_head.weight");
  EXPECT_EQ(shapes.params.back().shape, (std::vector<int64_t>{32000, 4096}));
}

TEST(ModelShapesTest, ATiedEmbeddingIsListedOnceAndSaysSo) {
  const ModelShapes shapes = shapes_from_config(
      R"({"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 8, "n_positions": 4, "vocab_size": 10})", "c");
  EXPECT_TRUE(shapes.params.front().tied);
  EXPECT_EQ(shapes.params.back().name, "transformer.ln_f.bias");
}

TEST(ModelShapesTest, ExpertsOfABlockAreOneUnit) {
  const ModelShapes shapes = shapes_from_config(
      R"({"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8,
      "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 100, "num_local_experts": 4})",
      "config.json");
  const auto in_block = std::count_if(shapes.params.begin(), shapes.params.end(),
                                      [](const ParamShape& param) { return param.unit == "model.layers.0.mlp"; });
  EXPECT_EQ(in_block, 3);
}

TEST(ModelShapesTest, AnUnknownModelTypeIsAnErrorThatNamesTheKnownOnes) {
  const std::string error = error_of(R"({"model_type": "nemotron"})");
  EXPECT_NE(error.find("\"nemotron\""), std::string::npos) << error;
  for (const char* type : {"llama", "mistral", "qwen2", "opt", "gpt2", "gpt_neox", "bloom", "falcon", "mixtral"}) {
    EXPECT_NE(error.find(type), std::string::npos) << type;
  }
}

TEST(ModelShapesTest, MissingAndImpossibleSizesAreNamed) {
  EXPECT_NE(error_of("{}").find("\"model_type\""), std::string::npos);
  EXPECT_NE(error_of(R"({"model_type": "gpt2", "n_embd": 8})").find("\"vocab_size\""), std::string::npos);
  EXPECT_NE(error_of(R"({"model_type": "gpt2", "n_embd": -8, "vocab_size": 3})").find("-8"), std::string::npos);
  EXPECT_NE(error_of(R"({"model_type": "gpt2", "n_embd": 18446744073709551615, "vocab_size": 3})").find("n_embd"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"model_type": "llama", "hidden_size": 65, "num_attention_heads": 8, "vocab_size": 9})")
                .find("hidden_size is 65"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"model_type": "gpt2", "n_embd": 8, "vocab_size": 3, "n_positions": 4, "n_layer": 1,
    "tie_word_embeddings": 1})")
                .find("tie_word_embeddings"),
            std::string::npos);
}

class ShapesOfFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string(test->name()) + std::to_string(this_process_id()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  [[nodiscard]] std::string at(const char* name) const { return (folder_ / name).string(); }
  void write_text(const char* name, const std::string& text) const { std::ofstream(folder_ / name) << text; }
  void write_weights(const char* name, const std::vector<std::string>& tensors) const {
    const std::vector<float> values(6);
    std::vector<SafetensorsItem> items;
    for (const std::string& tensor : tensors) items.push_back({tensor, DType::kBFloat16, {2, 3}, values.data()});
    const std::vector<int64_t> ids(2);
    items.push_back({tensors.front() + ".position_ids", DType::kInt64, {2}, ids.data()});
    items.push_back({tensors.front() + ".rotary.inv_freq", DType::kFloat32, {2}, values.data()});
    write_safetensors(at(name), items);
  }

  fs::path folder_;
};

TEST_F(ShapesOfFilesTest, HeadersHoldTheFloatingPointParameters) {
  write_weights("model.safetensors", {"h.0.weight", "h.1.weight"});
  const ModelShapes shapes = read_model_shapes(at("model.safetensors"));
  ASSERT_EQ(shapes.params.size(), 2u);
  EXPECT_EQ(shapes.params[0].name, "h.0.weight");
  EXPECT_EQ(shapes.params[0].unit, "h.0");
  EXPECT_EQ(shapes.params[0].dtype, DType::kBFloat16);
  EXPECT_EQ(shapes.numel(), 12);
}

TEST_F(ShapesOfFilesTest, AFolderIsReadByItsIndexBeforeItsConfiguration) {
  write_weights("model-1.safetensors", {"a.weight"});
  write_weights("model-2.safetensors", {"b.weight", "c.weight"});
  write_text("config.json", kLlama2);
  EXPECT_EQ(read_model_shapes(folder_.string()).numel(), 6'738'415'616);
  write_text("model.safetensors.index.json", R"({"weight_map": {"a.weight": "model-1.safetensors",
    "b.weight": "model-2.safetensors", "c.weight": "model-2.safetensors"}})");
  EXPECT_EQ(read_model_shapes(folder_.string()).numel(), 18);
  EXPECT_EQ(read_model_shapes(at("model.safetensors.index.json")).params.size(), 3u);
}

TEST_F(ShapesOfFilesTest, ABrokenConfigurationIsSaidToBeTheModels) {
  const auto error = [&](const std::string& name) -> std::string {
    try {
      (void)read_model_shapes(at(name.c_str()));
    } catch (const ConfigError& problem) {
      return problem.what();
    }
    return "";
  };
  write_text("config.json", "{\"model_type\": ");
  EXPECT_TRUE(error("config.json").starts_with(at("config.json") + ": the model's configuration is not JSON"))
      << error("config.json");
  EXPECT_TRUE(error("none.json").starts_with("the model's configuration '" + at("none.json") + "' does not exist"))
      << error("none.json");
  write_text("model.safetensors.index.json", "{");
  EXPECT_TRUE(error("model.safetensors.index.json").find("the index of the model's weights") != std::string::npos);
}

TEST_F(ShapesOfFilesTest, UnusableFilesAreNamed) {
  EXPECT_THROW((void)read_model_shapes(folder_.string()), ConfigError);
  EXPECT_THROW((void)read_model_shapes(at("none.json")), ConfigError);
  EXPECT_THROW((void)read_model_shapes(at("none.safetensors")), CheckpointError);
  write_text("model.safetensors.index.json", R"({"weight_map": {"a": "../model.safetensors"}})");
  EXPECT_THROW((void)read_model_shapes(folder_.string()), CheckpointError);
  write_text("model.safetensors.index.json", "[]");
  EXPECT_THROW((void)read_model_shapes(folder_.string()), CheckpointError);
}

}  // namespace
}  // namespace deepscale
