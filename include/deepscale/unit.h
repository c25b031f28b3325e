// Unit: a submodule whose parameters are gathered before its forward and released after it, when the configuration
// shards parameters. The wrapper holds the submodule and changes nothing else: parameters keep their names, and without
// an engine a call is a plain forward.
//
//   struct GptImpl : torch::nn::Module {
//     GptImpl() : block(register_module("block", std::make_shared<BlockImpl>())) {}
//     torch::Tensor forward(torch::Tensor x) { return block(x); }      // gather, BlockImpl::forward, release
//     deepscale::Unit<BlockImpl> block;
//   };
//
// Parameters must be used inside the forward of a unit that contains them (or shares them); those outside all units
// stay whole on every rank.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace deepscale {

/// What an engine does around a unit's forward.
class UnitHook {
 public:
  virtual ~UnitHook() = default;
  virtual void before_forward(const std::vector<at::Tensor>& inputs) = 0;
  virtual void after_forward(const std::vector<at::Tensor>& outputs) = 0;
};

namespace detail {

/// Tensors that require gradients, inside nested standard containers. Other types are passed over.
class TensorCollector {
 public:
  std::vector<at::Tensor> found;

  void add(const at::Tensor& tensor) {
    if (tensor.defined() && tensor.requires_grad()) found.push_back(tensor);
  }
  template <typename T>
  void add(const std::optional<T>& value) {
    if (value) add(*value);
  }
  template <typename T>
  void add(const std::vector<T>& values) {
    for (const T& value : values) add(value);
  }
  template <typename K, typename V>
  void add(const std::map<K, V>& values) {
    for (const auto& entry : values) add(entry.second);
  }
  template <typename A, typename B>
  void add(const std::pair<A, B>& value) {
    add(value.first);
    add(value.second);
  }
  template <typename... Ts>
  void add(const std::tuple<Ts...>& values) {
    std::apply([this](const auto&... each) { (add(each), ...); }, values);
  }
  template <typename T>
  void add(const T& value) {
    if constexpr (std::is_convertible_v<const T&, at::Tensor>) add(static_cast<at::Tensor>(value));
  }
};

}  // namespace detail

/// A unit of any module type, as InitializeOptions lists them. A value handle: copies are the same unit.
class AnyUnit {
 public:
  [[nodiscard]] const std::shared_ptr<torch::nn::Module>& module() const { return state_->module; }
  /// Null: forward runs plainly again. Called by initialize() and by the engine's end.
  void attach(std::shared_ptr<UnitHook> hook) const { state_->hook = std::move(hook); }
  [[nodiscard]] bool attached() const { return state_->hook != nullptr; }

 protected:
  struct State {
    std::shared_ptr<torch::nn::Module> module;
    std::shared_ptr<UnitHook> hook;
  };

  explicit AnyUnit(std::shared_ptr<torch::nn::Module> module) : state_(std::make_shared<State>()) {
    state_->module = std::move(module);
  }
  std::shared_ptr<State> state_;
};

template <typename ModuleImpl>
class Unit : public AnyUnit {
 public:
  /// The submodule stays registered in its parent; register_module() returns what this takes.
  Unit(std::shared_ptr<ModuleImpl> module) : AnyUnit(module), typed_(std::move(module)) {}
  Unit(const torch::nn::ModuleHolder<ModuleImpl>& holder) : Unit(holder.ptr()) {}

  [[nodiscard]] ModuleImpl* operator->() const { return typed_.get(); }
  [[nodiscard]] ModuleImpl& operator*() const { return *typed_; }
  [[nodiscard]] const std::shared_ptr<ModuleImpl>& ptr() const { return typed_; }

  /// ModuleImpl::forward, which must return a value, between gather and release.
  template <typename... Args>
  auto operator()(Args&&... args) const {
    const std::shared_ptr<UnitHook> hook = state_->hook;
    if (hook == nullptr) return typed_->forward(std::forward<Args>(args)...);
    detail::TensorCollector inputs;
    (inputs.add(args), ...);
    hook->before_forward(inputs.found);
    auto output = [&] {
      try {
        return typed_->forward(std::forward<Args>(args)...);
      } catch (...) {
        hook->after_forward({});
        throw;
      }
    }();
    detail::TensorCollector outputs;
    outputs.add(output);
    hook->after_forward(outputs.found);
    return output;
  }

 private:
  std::shared_ptr<ModuleImpl> typed_;
};

}  // namespace deepscale
