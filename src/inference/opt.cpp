// OPT (Zhang et al. 2022, arXiv 2205.01068), with the names that Transformers gives its weights.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/core.h>

#include <cmath>

#include "base/error.h"
#include "inference/decoder_model.h"

namespace deepscale {
namespace {

// Of the position table the first rows belong to padding.
constexpr int64_t kPositionOffset = 2;

class Opt final : public DecoderModel {
 public:
  Opt(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options) : DecoderModel(std::move(folder), options) {
    read_sizes();
    const std::string root = "model.decoder.";
    embedding_ = store().matrix(root + "embed_tokens.weight", sizes_.vocabulary, width_);
    positions_ = store().resident(root + "embed_positions.weight", {sizes_.positions + kPositionOffset, hidden_});
    if (width_ != hidden_) {
      project_in_ = store().matrix(root + "project_in.weight", hidden_, width_);
      project_out_ = store().matrix(root + "project_out.weight", width_, hidden_);
    }
    for (int64_t l = 0; l < sizes_.layers; ++l) layers_.push_back(load_layer(fmt::format("{}layers.{}.", root, l)));
    if (norm_first_ && !config().flag("_remove_final_layer_norm", false)) norm_ = load_norm(root + "final_layer_norm");
    head_ = config().flag("tie_word_embeddings", true) ? embedding_
                                                       : store().matrix("lm_head.weight", sizes_.vocabulary, width_);
    store().finish();
  }

 protected:
  at::Tensor embed(const at::Tensor& ids, int64_t first) override {
    at::Tensor x = store().embedding(embedding_, ids);
    if (project_in_ >= 0) x = store().linear(project_in_, x);
    return x + positions_.narrow(0, first + kPositionOffset, ids.size(1));
  }

  at::Tensor layer(int64_t index, const at::Tensor& hidden, int64_t /*first*/) override {
    const Layer& of = layers_[index];
    at::Tensor x = norm_first_ ? apply(of.attention_norm, hidden) : hidden;
    const at::Tensor q = split_heads(linear(of.q, x), heads_);
    cache(index).append(split_heads(linear(of.k, x), heads_), split_heads(linear(of.v, x), heads_));
    const double scale = 1.0 / std::sqrt(static_cast<double>(hidden_ / heads_));
    x = hidden + linear(of.out, causal_attention(q, cache(index).keys(), cache(index).values(), scale));
    if (!norm_first_) x = apply(of.attention_norm, x);
    const at::Tensor inner = linear(of.fc1, norm_first_ ? apply(of.final_norm, x) : x);
    x = x + linear(of.fc2, gelu_ ? at::gelu(inner) : at::relu(inner));
    return norm_first_ ? x : apply(of.final_norm, x);
  }

  at::Tensor head(const at::Tensor& hidden) override {
    at::Tensor x = norm_.weight.defined() ? apply(norm_, hidden) : hidden;
    if (project_out_ >= 0) x = store().linear(project_out_, x);
    return store().linear(head_, x);
  }

 private:
  struct Linear {
    int matrix = -1;
    at::Tensor bias;
  };
  struct Norm {
    at::Tensor weight, bias;
  };
  struct Layer {
    Norm attention_norm, final_norm;
    Linear q, k, v, out, fc1, fc2;
  };

  void read_sizes() {
    hidden_ = config().count("hidden_size");
    width_ = config().count("word_embed_proj_dim", hidden_);
    inner_ = config().count("ffn_dim");
    heads_ = config().count("num_attention_heads");
    norm_first_ = config().flag("do_layer_norm_before", true);
    sizes_ = {config().count("vocab_size"), config().count("num_hidden_layers"),
              config().count("max_position_embeddings", 2048)};
    DS_CHECK_AS(ConfigError, hidden_ % heads_ == 0, "{}: hidden_size {} is no multiple of num_attention_heads {}",
                config().path(), hidden_, heads_);
    const std::string activation = config().text("activation_function", "relu");
    DS_CHECK_AS(ConfigError, activation == "relu" || activation == "gelu",
                "{}: \"activation_function\" is \"{}\"; relu or gelu is expected", config().path(), activation);
    gelu_ = activation == "gelu";
    DS_CHECK_AS(ConfigError, config().flag("layer_norm_elementwise_affine", true),
                "{}: \"layer_norm_elementwise_affine\" false is not served", config().path());
    bias_ = config().flag("enable_bias", true);
  }

  Linear load_linear(const std::string& name, int64_t rows, int64_t cols) {
    Linear made{store().matrix(name + ".weight", rows, cols), {}};
    if (bias_) made.bias = store().resident(name + ".bias", {rows});
    return made;
  }

  Norm load_norm(const std::string& name) {
    return {store().resident(name + ".weight", {hidden_}), store().resident(name + ".bias", {hidden_})};
  }

  Layer load_layer(const std::string& prefix) {
    const std::string attention = prefix + "self_attn.";
    Layer made;
    made.attention_norm = load_norm(prefix + "self_attn_layer_norm");
    made.q = load_linear(attention + "q_proj", hidden_, hidden_);
    made.k = load_linear(attention + "k_proj", hidden_, hidden_);
    made.v = load_linear(attention + "v_proj", hidden_, hidden_);
    made.out = load_linear(attention + "out_proj", hidden_, hidden_);
    made.final_norm = load_norm(prefix + "final_layer_norm");
    made.fc1 = load_linear(prefix + "fc1", inner_, hidden_);
    made.fc2 = load_linear(prefix + "fc2", hidden_, inner_);
    return made;
  }

  at::Tensor linear(const Linear& of, const at::Tensor& x) { return store().linear(of.matrix, x, of.bias); }
  at::Tensor apply(const Norm& norm, const at::Tensor& x) const {
    return at::layer_norm(x, {hidden_}, norm.weight, norm.bias, 1e-5);
  }

  int64_t hidden_ = 0, width_ = 0, inner_ = 0, heads_ = 0;
  bool norm_first_ = true, gelu_ = false, bias_ = true;
  at::Tensor positions_;
  std::vector<Layer> layers_;
  Norm norm_;
  int embedding_ = -1, head_ = -1, project_in_ = -1, project_out_ = -1;
};

}  // namespace

std::unique_ptr<CausalLm> make_opt(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options) {
  return std::make_unique<Opt>(std::move(folder), options);
}

}  // namespace deepscale
