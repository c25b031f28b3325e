// A small model of units with a shared weight, a loose parameter and a buffer, for tests of the public C++ API.
#pragma once

#include <ATen/Functions.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "deepscale/training.h"

namespace deepscale {

constexpr int64_t kWidth = 48;

inline at::Tensor pattern(at::IntArrayRef shape, int64_t seed) {
  const at::Tensor index = at::arange(c10::multiply_integers(shape), at::kFloat);
  return at::sin(index.add(1).mul(0.37 * static_cast<double>(seed + 3))).mul(0.2).view(shape);
}

struct LayerImpl : torch::nn::Module {
  explicit LayerImpl(bool with_bias)
      : linear(register_module("linear", torch::nn::Linear(torch::nn::LinearOptions(kWidth, kWidth).bias(with_bias)))) {
  }
  at::Tensor forward(const at::Tensor& x) { return at::tanh(linear->forward(x)).add(x); }
  torch::nn::Linear linear;
};

/// The output layer shares the input layer's weight.
struct HeadImpl : torch::nn::Module {
  explicit HeadImpl(const at::Tensor& shared) : weight(register_parameter("weight", shared)) {}
  at::Tensor forward(const at::Tensor& x) {
    if (fails) throw std::runtime_error("the head fails");
    return at::linear(x, weight.t());
  }
  at::Tensor weight;
  bool fails = false;
};

struct NetImpl : torch::nn::Module {
  NetImpl()
      : entry(register_module("entry", std::make_shared<LayerImpl>(true))),
        head(register_module("head", std::make_shared<HeadImpl>(entry->linear->weight))) {
    register_module("layers", list);
    for (int i = 0; i < 3; ++i) {
      layers.emplace_back(std::make_shared<LayerImpl>(i != 1));
      list->push_back(layers.back().ptr());
    }
    scale = register_parameter("scale", at::ones({kWidth}));
    offset = register_buffer("offset", at::zeros({kWidth}));
    const at::NoGradGuard no_grad;
    int64_t seed = 0;
    for (auto& param : named_parameters()) {
      if (param.key() != "head.weight") param.value().copy_(pattern(param.value().sizes(), seed++));
    }
  }

  at::Tensor forward(const at::Tensor& x) {
    at::Tensor hidden = entry(x);
    for (auto& layer : layers) hidden = layer(hidden);
    return head(hidden.mul(scale).add(offset.to(hidden.scalar_type())));
  }

  std::vector<AnyUnit> units() const {
    std::vector<AnyUnit> all = {entry, head};
    for (const auto& layer : layers) all.push_back(layer);
    return all;
  }

  Unit<LayerImpl> entry;
  Unit<HeadImpl> head;
  torch::nn::ModuleList list;
  std::vector<Unit<LayerImpl>> layers;
  at::Tensor scale, offset;
};

}  // namespace deepscale
