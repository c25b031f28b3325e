#include "gpt.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>

#include <array>
#include <cmath>
#include <stdexcept>
#include <string_view>

namespace {

torch::nn::LayerNorm norm(const GptConfig& config) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.d_model}));
}

/// Like Python's F.linear, which adds the bias before it rounds; LibTorch's LinearImpl::forward rounds twice in 16
/// bits.
at::Tensor linear(const torch::nn::Linear& layer, const at::Tensor& x) {
  return at::linear(x, layer->weight, layer->bias);
}

/// CRC-32 of zlib, which seeds each parameter's initial values.
uint32_t crc32(std::string_view text) {
  uint32_t crc = 0xffffffffu;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

void GptConfig::check() const {
  const std::array<std::pair<const char*, int64_t>, 5> sizes = {{{"vocab_size", vocab_size},
                                                                 {"block_size", block_size},
                                                                 {"n_layer", n_layer},
                                                                 {"d_model", d_model},
                                                                 {"n_head", n_head}}};
  for (const auto& [name, value] : sizes) {
    if (value < 1) throw std::invalid_argument(std::string(name) + " must be at least 1, got " + std::to_string(value));
  }
  if (d_model % n_head != 0) {
    throw std::invalid_argument("d_model must be a multiple of n_head, got d_model=" + std::to_string(d_model) +
                                ", n_head=" + std::to_string(n_head));
  }
}

AttentionImpl::AttentionImpl(const GptConfig& config)
    : n_head(config.n_head),
      qkv(register_module("qkv", torch::nn::Linear(config.d_model, 3 * config.d_model))),
      projection(register_module("projection", torch::nn::Linear(config.d_model, config.d_model))) {}

at::Tensor AttentionImpl::forward(const at::Tensor& x) {
  const int64_t batch = x.size(0), time = x.size(1), width = x.size(2);
  std::vector<at::Tensor> parts = linear(qkv, x).split(width, 2);
  for (auto& part : parts) part = part.view({batch, time, n_head, width / n_head}).transpose(1, 2);
  const at::Tensor mixed =
      at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, /*dropout_p=*/0.0, /*is_causal=*/true);
  return linear(projection, mixed.transpose(1, 2).reshape({batch, time, width}));
}

MlpImpl::MlpImpl(const GptConfig& config)
    : expand(register_module("expand", torch::nn::Linear(config.d_model, 4 * config.d_model))),
      contract(register_module("contract", torch::nn::Linear(4 * config.d_model, config.d_model))) {}

at::Tensor MlpImpl::forward(const at::Tensor& x) {
  return linear(contract, at::gelu(linear(expand, x), "tanh"));
}

BlockImpl::BlockImpl(const GptConfig& config)
    : attention_norm(register_module("attention_norm", norm(config))),
      attention(register_module("attention", std::make_shared<AttentionImpl>(config))),
      mlp_norm(register_module("mlp_norm", norm(config))),
      mlp(register_module("mlp", std::make_shared<MlpImpl>(config))) {}

at::Tensor BlockImpl::forward(const at::Tensor& x) {
  const at::Tensor attended = x + attention->forward(attention_norm->forward(x));
  return attended + mlp->forward(mlp_norm->forward(attended));
}

TiedHeadImpl::TiedHeadImpl(const at::Tensor& shared) : weight(register_parameter("weight", shared)) {}

at::Tensor TiedHeadImpl::forward(const at::Tensor& x) {
  return at::linear(x, weight);
}

GptImpl::GptImpl(const GptConfig& given)
    : config(given),
      token_embedding(register_module("token_embedding", torch::nn::Embedding(given.vocab_size, given.d_model))),
      position_embedding(register_module("position_embedding", torch::nn::Embedding(given.block_size, given.d_model))),
      block_list(register_module("blocks", torch::nn::ModuleList())),
      final_norm(register_module("final_norm", norm(given))),
      head(register_module("head", std::make_shared<TiedHeadImpl>(token_embedding->weight))) {
  for (int64_t layer = 0; layer < given.n_layer; ++layer) {
    blocks.emplace_back(std::make_shared<BlockImpl>(given));
    block_list->push_back(blocks.back().ptr());
  }
}

at::Tensor GptImpl::forward(const at::Tensor& tokens, const at::Tensor& targets) {
  const at::Tensor positions = at::arange(tokens.size(1), tokens.options());
  at::Tensor x = token_embedding(tokens) + position_embedding->forward(positions);
  for (const auto& block : blocks) x = block(x);
  const at::Tensor logits = head(final_norm->forward(x));
  return at::cross_entropy_loss(logits.flatten(0, 1).to(at::kFloat), targets.flatten());
}

std::vector<deepscale::AnyUnit> GptImpl::units() const {
  std::vector<deepscale::AnyUnit> all = {token_embedding, head};
  all.insert(all.end(), blocks.begin(), blocks.end());
  return all;
}

void GptImpl::initialize_values(int64_t seed) {
  const at::NoGradGuard no_grad;
  for (auto& entry : named_parameters()) {
    const std::string& name = entry.key();
    at::Tensor& value = entry.value();
    if (name == "head.weight") continue;
    if (ends_with(name, ".bias")) {
      value.zero_();
    } else if (name.find("norm") != std::string::npos) {
      value.fill_(1.0);
    } else {
      const bool residual = ends_with(name, "projection.weight") || ends_with(name, "contract.weight");
      const double deviation = residual ? 0.02 / std::sqrt(2.0 * static_cast<double>(config.n_layer)) : 0.02;
      auto generator = at::make_generator<at::CPUGeneratorImpl>(crc32(std::to_string(seed) + "/" + name));
      value.normal_(0.0, deviation, generator);
    }
  }
}
