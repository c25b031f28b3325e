// Which parameters the causal language models of Transformers have, per family and configuration. Tests compare with
// published totals and, where it is installed, with Transformers itself.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/checked_math.h"
#include "base/error.h"
#include "config/json_text.h"
#include "engine/model_shapes.h"

namespace deepscale {
namespace {

using config::Json;

constexpr int64_t kLargestSize = int64_t{1} << 30;  // products of two, and small multiples of them, fit
constexpr int64_t kMostLayers = 10'000;

/// Typed access to a configuration, and the list that grows.
class Family {
 public:
  Family(const Json& json, const std::string& source, ModelShapes& shapes)
      : json_(json), source_(source), shapes_(shapes) {
    const std::string dtype = json.contains("dtype") ? text("dtype") : text("torch_dtype");
    if (dtype == "bfloat16") dtype_ = DType::kBFloat16;
    if (dtype == "float16") dtype_ = DType::kFloat16;
  }

  /// The first of the names that is given.
  int64_t size(std::initializer_list<const char*> names) const {
    const auto found = optional_size(names);
    DS_CHECK_AS(ConfigError, found.has_value(), "{}: needs the number \"{}\"", source_, *names.begin());
    return *found;
  }
  int64_t size_or(std::initializer_list<const char*> names, int64_t fallback) const {
    return optional_size(names).value_or(fallback);
  }
  /// size(), of what parameters are listed for one by one.
  int64_t layers(std::initializer_list<const char*> names) const {
    const auto found = optional_size(names, kMostLayers);
    DS_CHECK_AS(ConfigError, found.has_value(), "{}: needs the number \"{}\"", source_, *names.begin());
    return *found;
  }
  bool flag(const char* name, bool fallback) const {
    if (!json_.contains(name) || json_.at(name).is_null()) return fallback;
    DS_CHECK_AS(ConfigError, json_.at(name).is_boolean(), "{}: \"{}\" must be true or false, found {}", source_, name,
                json_.at(name).dump());
    return json_.at(name).get<bool>();
  }
  std::string text(const char* name) const {
    return json_.contains(name) && json_.at(name).is_string() ? json_.at(name).get<std::string>() : "";
  }
  /// whole / parts, which must be a whole number.
  int64_t quotient(int64_t whole, int64_t parts, const char* what) const {
    DS_CHECK_AS(ConfigError, whole % parts == 0, "{}: {} is {}, which {} does not divide", source_, what, whole, parts);
    return whole / parts;
  }

  /// All names from here on begin with it.
  void enter(std::string prefix) { prefix_ = std::move(prefix); }
  /// Parameters of all modules below belong to this one's unit; "" ends it.
  void leaf(const std::string& module) { leaf_ = module.empty() ? "" : prefix_ + module; }

  void add(const std::string& module, const std::string& param, std::vector<int64_t> shape) {
    const std::string owner = prefix_ + module;
    shapes_.params.push_back({owner + "." + param, std::move(shape), dtype_, true, leaf_.empty() ? owner : leaf_});
  }
  void weight(const std::string& module, std::vector<int64_t> shape) { add(module, "weight", std::move(shape)); }
  /// A matrix [out, in] with a bias [out].
  void linear(const std::string& module, int64_t out, int64_t in, bool bias) {
    weight(module, {out, in});
    if (bias) add(module, "bias", {out});
  }
  void layer_norm(const std::string& module, int64_t width, bool bias = true) {
    weight(module, {width});
    if (bias) add(module, "bias", {width});
  }
  /// The output layer, unless it is the embedding, which comes first in all families.
  void head(const char* module, int64_t vocabulary, int64_t width, bool tied_by_default, bool bias = false) {
    enter("");
    shapes_.params.front().tied = flag("tie_word_embeddings", tied_by_default);
    if (!shapes_.params.front().tied) linear(module, vocabulary, width, bias);
  }

 private:
  std::optional<int64_t> optional_size(std::initializer_list<const char*> names, int64_t most = kLargestSize) const {
    for (const char* name : names) {
      if (!json_.contains(name) || json_.at(name).is_null()) continue;
      const Json& value = json_.at(name);
      const bool whole =
          value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() < (1u << 31));
      DS_CHECK_AS(ConfigError, whole && value.get<int64_t>() > 0 && value.get<int64_t>() <= most,
                  "{}: \"{}\" must be a whole number from 1 to {}, found {}", source_, name, most, value.dump());
      return value.get<int64_t>();
    }
    return std::nullopt;
  }

  const Json& json_;
  const std::string& source_;
  ModelShapes& shapes_;
  DType dtype_ = DType::kFloat32;
  std::string prefix_, leaf_;
};

/// What Llama's descendants differ in.
struct LlamaTraits {
  bool qkv_bias = false;
  bool out_bias = false;
  bool mlp_bias = false;
  bool head_norms = false;  ///< norms of queries and keys, per head
  bool experts = false;
};

void llama_mlp(Family& model, const LlamaTraits& traits, int64_t width) {
  const int64_t inner = model.size({"intermediate_size"});
  if (traits.experts) {
    const int64_t experts = model.size({"num_local_experts"});
    model.leaf("mlp");
    model.weight("mlp.gate", {experts, width});
    model.add("mlp.experts", "gate_up_proj", {experts, 2 * inner, width});
    model.add("mlp.experts", "down_proj", {experts, width, inner});
    model.leaf("");
    return;
  }
  model.linear("mlp.gate_proj", inner, width, traits.mlp_bias);
  model.linear("mlp.up_proj", inner, width, traits.mlp_bias);
  model.linear("mlp.down_proj", width, inner, traits.mlp_bias);
}

void llama_like(Family& model, const LlamaTraits& traits) {
  const int64_t width = model.size({"hidden_size"}), heads = model.size({"num_attention_heads"});
  const int64_t vocabulary = model.size({"vocab_size"}), key_heads = model.size_or({"num_key_value_heads"}, heads);
  const int64_t head =
      model.size_or({"head_dim"}, 0) > 0 ? model.size({"head_dim"}) : model.quotient(width, heads, "hidden_size");
  model.enter("model.");
  model.weight("embed_tokens", {vocabulary, width});
  const int64_t layers = model.layers({"num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("model.layers.{}.", i));
    model.linear("self_attn.q_proj", heads * head, width, traits.qkv_bias);
    model.linear("self_attn.k_proj", key_heads * head, width, traits.qkv_bias);
    model.linear("self_attn.v_proj", key_heads * head, width, traits.qkv_bias);
    model.linear("self_attn.o_proj", width, heads * head, traits.out_bias);
    if (traits.head_norms) {
      model.weight("self_attn.q_norm", {head});
      model.weight("self_attn.k_norm", {head});
    }
    llama_mlp(model, traits, width);
    model.weight("input_layernorm", {width});
    model.weight("post_attention_layernorm", {width});
  }
  model.enter("model.");
  model.weight("norm", {width});
  model.head("lm_head", vocabulary, width, /*tied_by_default=*/false);
}

void llama(Family& model) {
  const bool bias = model.flag("attention_bias", false);
  llama_like(model, {bias, bias, model.flag("mlp_bias", false), false, false});
}

void mistral(Family& model) {
  llama_like(model, {});
}

void mixtral(Family& model) {
  llama_like(model, {false, false, false, false, /*experts=*/true});
}

void qwen2(Family& model) {
  llama_like(model, {/*qkv_bias=*/true, false, false, false, false});
}

void qwen3(Family& model) {
  const bool bias = model.flag("attention_bias", false);
  llama_like(model, {bias, bias, false, /*head_norms=*/true, false});
}

void opt(Family& model) {
  const int64_t width = model.size({"hidden_size"}), inner = model.size({"ffn_dim"});
  const int64_t vocabulary = model.size({"vocab_size"}), embedding = model.size_or({"word_embed_proj_dim"}, width);
  const bool bias = model.flag("enable_bias", true), affine = model.flag("layer_norm_elementwise_affine", true);
  const auto norm = [&](const char* name) {
    if (affine) model.layer_norm(name, width);
  };
  model.enter("model.decoder.");
  model.weight("embed_tokens", {vocabulary, embedding});
  model.weight("embed_positions", {model.size({"max_position_embeddings"}) + 2, width});
  if (embedding != width) {
    model.weight("project_out", {embedding, width});
    model.weight("project_in", {width, embedding});
  }
  if (model.flag("do_layer_norm_before", true) && !model.flag("_remove_final_layer_norm", false)) {
    norm("final_layer_norm");
  }
  const int64_t layers = model.layers({"num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("model.decoder.layers.{}.", i));
    for (const char* name : {"self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"}) {
      model.linear(name, width, width, bias);
    }
    norm("self_attn_layer_norm");
    model.linear("fc1", inner, width, bias);
    model.linear("fc2", width, inner, bias);
    norm("final_layer_norm");
  }
  model.head("lm_head", vocabulary, embedding, /*tied_by_default=*/true);
}

/// Its matrices are stored [in, out].
void gpt2(Family& model) {
  const int64_t width = model.size({"n_embd", "hidden_size"}), vocabulary = model.size({"vocab_size"});
  const int64_t inner = model.size_or({"n_inner"}, 4 * width);
  const auto matrix = [&](const char* name, int64_t in, int64_t out) {
    model.weight(name, {in, out});
    model.add(name, "bias", {out});
  };
  model.enter("transformer.");
  model.weight("wte", {vocabulary, width});
  model.weight("wpe", {model.size({"n_positions", "max_position_embeddings", "n_ctx"}), width});
  const int64_t layers = model.layers({"n_layer", "num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("transformer.h.{}.", i));
    model.layer_norm("ln_1", width);
    matrix("attn.c_attn", width, 3 * width);
    matrix("attn.c_proj", width, width);
    model.layer_norm("ln_2", width);
    matrix("mlp.c_fc", width, inner);
    matrix("mlp.c_proj", inner, width);
  }
  model.enter("transformer.");
  model.layer_norm("ln_f", width);
  model.head("lm_head", vocabulary, width, /*tied_by_default=*/true);
}

void gpt_neox(Family& model) {
  const int64_t width = model.size({"hidden_size"}), inner = model.size({"intermediate_size"});
  const int64_t vocabulary = model.size({"vocab_size"});
  const bool bias = model.flag("attention_bias", true);
  model.enter("gpt_neox.");
  model.weight("embed_in", {vocabulary, width});
  const int64_t layers = model.layers({"num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("gpt_neox.layers.{}.", i));
    model.layer_norm("input_layernorm", width);
    model.layer_norm("post_attention_layernorm", width);
    model.linear("attention.query_key_value", 3 * width, width, bias);
    model.linear("attention.dense", width, width, bias);
    model.linear("mlp.dense_h_to_4h", inner, width, true);
    model.linear("mlp.dense_4h_to_h", width, inner, true);
  }
  model.enter("gpt_neox.");
  model.layer_norm("final_layer_norm", width);
  // Checkpoints call it embed_out, current versions lm_head.
  model.head("lm_head", vocabulary, width, /*tied_by_default=*/false);
}

void bloom(Family& model) {
  const int64_t width = model.size({"hidden_size", "n_embed", "n_embd"}), vocabulary = model.size({"vocab_size"});
  model.enter("transformer.");
  model.weight("word_embeddings", {vocabulary, width});
  model.layer_norm("word_embeddings_layernorm", width);
  const int64_t layers = model.layers({"n_layer", "num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("transformer.h.{}.", i));
    model.layer_norm("input_layernorm", width);
    model.linear("self_attention.query_key_value", 3 * width, width, true);
    model.linear("self_attention.dense", width, width, true);
    model.layer_norm("post_attention_layernorm", width);
    model.linear("mlp.dense_h_to_4h", 4 * width, width, true);
    model.linear("mlp.dense_4h_to_h", width, 4 * width, true);
  }
  model.enter("transformer.");
  model.layer_norm("ln_f", width);
  model.head("lm_head", vocabulary, width, /*tied_by_default=*/true);
}

void falcon_norms(Family& model, int64_t width, bool new_architecture) {
  if (new_architecture && model.size_or({"num_ln_in_parallel_attn"}, 2) == 2) {
    model.layer_norm("ln_attn", width);
    model.layer_norm("ln_mlp", width);
    return;
  }
  model.layer_norm("input_layernorm", width);
  if (!new_architecture && !model.flag("parallel_attn", true)) model.layer_norm("post_attention_layernorm", width);
}

void falcon(Family& model) {
  const int64_t width = model.size({"hidden_size"}), vocabulary = model.size({"vocab_size"});
  const int64_t heads = model.size({"num_attention_heads", "n_head"});
  const int64_t head = model.quotient(width, heads, "hidden_size");
  const bool new_architecture = model.flag("new_decoder_architecture", false), bias = model.flag("bias", false);
  int64_t projected = 3 * width;
  if (new_architecture) {
    projected = (2 * model.size_or({"num_kv_heads"}, heads) + heads) * head;
  } else if (model.flag("multi_query", true)) {
    projected = width + 2 * head;
  }
  const int64_t inner = model.size_or({"ffn_hidden_size"}, 4 * width);
  model.enter("transformer.");
  model.weight("word_embeddings", {vocabulary, width});
  const int64_t layers = model.layers({"num_hidden_layers", "n_layer"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("transformer.h.{}.", i));
    model.linear("self_attention.query_key_value", projected, width, bias);
    model.linear("self_attention.dense", width, width, bias);
    model.linear("mlp.dense_h_to_4h", inner, width, bias);
    model.linear("mlp.dense_4h_to_h", width, inner, bias);
    falcon_norms(model, width, new_architecture);
  }
  model.enter("transformer.");
  model.layer_norm("ln_f", width);
  model.head("lm_head", vocabulary, width, /*tied_by_default=*/true);
}

void phi(Family& model) {
  const int64_t width = model.size({"hidden_size"}), inner = model.size({"intermediate_size"});
  const int64_t heads = model.size({"num_attention_heads"}), vocabulary = model.size({"vocab_size"});
  const int64_t key_width = model.quotient(width, heads, "hidden_size") * model.size_or({"num_key_value_heads"}, heads);
  model.enter("model.");
  model.weight("embed_tokens", {vocabulary, width});
  const int64_t layers = model.layers({"num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    model.enter(fmt::format("model.layers.{}.", i));
    model.linear("self_attn.q_proj", width, width, true);
    model.linear("self_attn.k_proj", key_width, width, true);
    model.linear("self_attn.v_proj", key_width, width, true);
    model.linear("self_attn.dense", width, width, true);
    model.linear("mlp.fc1", inner, width, true);
    model.linear("mlp.fc2", width, inner, true);
    model.layer_norm("input_layernorm", width);
  }
  model.enter("model.");
  model.layer_norm("final_layernorm", width);
  model.head("lm_head", vocabulary, width, /*tied_by_default=*/false, /*bias=*/true);
}

struct KnownFamily {
  std::string_view type;
  void (*list)(Family&);
};
constexpr KnownFamily kFamilies[] = {
    {"bloom", bloom}, {"falcon", falcon},   {"gpt2", gpt2},       {"gpt_neox", gpt_neox},
    {"llama", llama}, {"mistral", mistral}, {"mixtral", mixtral}, {"opt", opt},
    {"phi", phi},     {"qwen2", qwen2},     {"qwen3", qwen3},
};

}  // namespace

const std::vector<std::string_view>& known_model_types() {
  static const std::vector<std::string_view> kTypes = [] {
    std::vector<std::string_view> types;
    for (const KnownFamily& family : kFamilies) types.push_back(family.type);
    return types;
  }();
  return kTypes;
}

ModelShapes shapes_from_config(const std::string& json_text, const std::string& source) {
  const Json json = [&] {
    try {
      return config::parse_json_text(json_text);
    } catch (const ConfigError& error) {
      ds_throw<ConfigError>("{}: the model's {}", source, error.what());
    }
  }();
  DS_CHECK_AS(ConfigError, json.is_object() && json.contains("model_type") && json["model_type"].is_string(),
              "{}: has no \"model_type\"; it must be the config.json of a Hugging Face model", source);
  const auto type = json["model_type"].get<std::string>();
  const auto* family =
      std::find_if(std::begin(kFamilies), std::end(kFamilies), [&](const KnownFamily& f) { return f.type == type; });
  DS_CHECK_AS(ConfigError, family != std::end(kFamilies),
              "{}: model_type \"{}\" is not one of {}; name the model's .safetensors file or folder instead, whose "
              "headers hold the shapes",
              source, type, fmt::join(known_model_types(), ", "));
  ModelShapes shapes;
  shapes.source = source;
  Family model(json, source, shapes);
  family->list(model);
  check_total(shapes);
  return shapes;
}

}  // namespace deepscale
