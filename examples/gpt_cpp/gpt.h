// A decoder-only transformer (GPT): the same model as examples/gpt/model.py, with the same parameter names and initial
// values, so weights and checkpoints go from one to the other.
#pragma once

#include <deepscale/unit.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct GptConfig {
  int64_t vocab_size = 0;
  int64_t block_size = 128;
  int64_t n_layer = 6;
  int64_t d_model = 384;
  int64_t n_head = 6;

  /// Throws std::invalid_argument for sizes that cannot work.
  void check() const;
};

/// Causal multi-head self-attention.
struct AttentionImpl : torch::nn::Module {
  explicit AttentionImpl(const GptConfig& config);
  at::Tensor forward(const at::Tensor& x);
  int64_t n_head;
  torch::nn::Linear qkv, projection;
};

/// Two linear layers with GELU (tanh form) between them.
struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(const GptConfig& config);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear expand, contract;
};

/// One transformer layer, normalised before each half.
struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(const GptConfig& config);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::LayerNorm attention_norm;
  std::shared_ptr<AttentionImpl> attention;
  torch::nn::LayerNorm mlp_norm;
  std::shared_ptr<MlpImpl> mlp;
};

/// Logits from hidden states, by the token embedding's weight.
struct TiedHeadImpl : torch::nn::Module {
  explicit TiedHeadImpl(const at::Tensor& shared);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor weight;
};

/// The language model. Layers, embedding and head are units: with sharded parameters each is gathered around its
/// forward.
struct GptImpl : torch::nn::Module {
  explicit GptImpl(const GptConfig& config);
  /// Mean cross entropy in nats. tokens and targets: [batch, time] int64.
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& targets);

  [[nodiscard]] std::vector<deepscale::AnyUnit> units() const;
  /// GPT-2's initial values: a function of name, shape and seed only.
  void initialize_values(int64_t seed);

  GptConfig config;
  deepscale::Unit<torch::nn::EmbeddingImpl> token_embedding;
  torch::nn::Embedding position_embedding;
  torch::nn::ModuleList block_list;
  std::vector<deepscale::Unit<BlockImpl>> blocks;
  torch::nn::LayerNorm final_norm;
  deepscale::Unit<TiedHeadImpl> head;
};
