// Llama (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288), with the names that Transformers gives its weights.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/core.h>

#include <cmath>

#include "base/error.h"
#include "inference/decoder_model.h"

namespace deepscale {
namespace {

class Llama final : public DecoderModel {
 public:
  Llama(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options)
      : DecoderModel(std::move(folder), options) {
    read_sizes();
    embedding_ = store().matrix("model.embed_tokens.weight", sizes_.vocabulary, hidden_);
    for (int64_t l = 0; l < sizes_.layers; ++l) layers_.push_back(load_layer(fmt::format("model.layers.{}.", l)));
    norm_ = store().resident("model.norm.weight", {hidden_});
    const bool tied = config().flag("tie_word_embeddings", false);
    head_ = tied ? embedding_ : store().matrix("lm_head.weight", sizes_.vocabulary, hidden_);
    store().finish();
  }

 protected:
  at::Tensor embed(const at::Tensor& ids, int64_t /*first*/) override { return store().embedding(embedding_, ids); }

  at::Tensor layer(int64_t index, const at::Tensor& hidden, int64_t first) override {
    const Layer& of = layers_[index];
    at::Tensor x = rms_norm(hidden, of.input_norm, epsilon_);
    const at::Tensor q = rotary_.apply(split_heads(linear(of.q, x), heads_), first);
    const at::Tensor k = rotary_.apply(split_heads(linear(of.k, x), kv_heads_), first);
    cache(index).append(k, split_heads(linear(of.v, x), kv_heads_));
    x = causal_attention(q, cache(index).keys(), cache(index).values(),
                         1.0 / std::sqrt(static_cast<double>(head_size_)));
    const at::Tensor after = hidden + linear(of.o, x);
    x = rms_norm(after, of.mlp_norm, epsilon_);
    return after + linear(of.down, at::silu(linear(of.gate, x)) * linear(of.up, x));
  }

  at::Tensor head(const at::Tensor& hidden) override {
    return store().linear(head_, rms_norm(hidden, norm_, epsilon_));
  }

 private:
  struct Linear {
    int matrix = -1;
    at::Tensor bias;
  };
  struct Layer {
    at::Tensor input_norm, mlp_norm;
    Linear q, k, v, o, gate, up, down;
  };

  void read_sizes() {
    hidden_ = config().count("hidden_size");
    inner_ = config().count("intermediate_size");
    heads_ = config().count("num_attention_heads");
    kv_heads_ = config().count("num_key_value_heads", heads_);
    head_size_ = config().count("head_dim", hidden_ / heads_);
    epsilon_ = config().number("rms_norm_eps", 1e-6);
    sizes_ = {config().count("vocab_size"), config().count("num_hidden_layers"),
              config().count("max_position_embeddings", 2048)};
    DS_CHECK_AS(
        ConfigError, heads_ % kv_heads_ == 0 && head_size_ % 2 == 0,
        "{}: {} heads, {} of keys and values, head size {}: the first must be a multiple of the second, the last "
        "even",
        config().path(), heads_, kv_heads_, head_size_);
    const std::string activation = config().text("hidden_act", "silu");
    DS_CHECK_AS(ConfigError, activation == "silu", "{}: \"hidden_act\" is \"{}\"; silu is expected", config().path(),
                activation);
    DS_CHECK_AS(ConfigError, !config().has("sliding_window"),
                "{}: \"sliding_window\" is not served; remove it for texts "
                "that are shorter",
                config().path());
    // Transformers 5 keeps both in rope_parameters, earlier versions in rope_scaling and rope_theta.
    const ModelConfig scaling = config().section(config().has("rope_parameters") ? "rope_parameters" : "rope_scaling");
    const std::string kind = scaling.text("rope_type", scaling.text("type", "default"));
    DS_CHECK_AS(ConfigError, kind == "default",
                "{}: rotary positions of type \"{}\" are not served; default is expected", config().path(), kind);
    rotary_ = RotaryTable(head_size_, scaling.number("rope_theta", config().number("rope_theta", 10000.0)));
  }

  Linear load_linear(const std::string& name, int64_t rows, int64_t cols, bool bias) {
    Linear made{store().matrix(name + ".weight", rows, cols), {}};
    if (bias) made.bias = store().resident(name + ".bias", {rows});
    return made;
  }

  Layer load_layer(const std::string& prefix) {
    const bool attention_bias = config().flag("attention_bias", false), mlp_bias = config().flag("mlp_bias", false);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    Layer made;
    made.input_norm = store().resident(prefix + "input_layernorm.weight", {hidden_});
    made.q = load_linear(attention + "q_proj", heads_ * head_size_, hidden_, attention_bias);
    made.k = load_linear(attention + "k_proj", kv_heads_ * head_size_, hidden_, attention_bias);
    made.v = load_linear(attention + "v_proj", kv_heads_ * head_size_, hidden_, attention_bias);
    made.o = load_linear(attention + "o_proj", hidden_, heads_ * head_size_, attention_bias);
    made.mlp_norm = store().resident(prefix + "post_attention_layernorm.weight", {hidden_});
    made.gate = load_linear(mlp + "gate_proj", inner_, hidden_, mlp_bias);
    made.up = load_linear(mlp + "up_proj", inner_, hidden_, mlp_bias);
    made.down = load_linear(mlp + "down_proj", hidden_, inner_, mlp_bias);
    return made;
  }

  at::Tensor linear(const Linear& of, const at::Tensor& x) { return store().linear(of.matrix, x, of.bias); }

  int64_t hidden_ = 0, inner_ = 0, heads_ = 0, kv_heads_ = 0, head_size_ = 0;
  double epsilon_ = 0;
  RotaryTable rotary_;
  std::vector<Layer> layers_;
  at::Tensor norm_;
  int embedding_ = -1, head_ = -1;
};

}  // namespace

std::unique_ptr<CausalLm> make_llama(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options) {
  return std::make_unique<Llama>(std::move(folder), options);
}

}  // namespace deepscale
