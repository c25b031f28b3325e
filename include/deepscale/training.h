// Training a torch::nn::Module with ZeRO, without Python: the same ds_config.json, the same numbers, checkpoints that
// both languages read. docs/cpp.md walks through a program.
//
//   auto engine = deepscale::initialize(model, "ds_config.json", {.units = model->units()});
//   for (...) {
//     auto loss = engine->forward<Gpt>(tokens, targets);
//     engine->backward(loss);
//     engine->step();
//   }
//   engine->save_checkpoint("checkpoints");
//
// Every rank of the run calls the same methods in the same order; those marked collective may wait for the others.
// Threads: one thread at a time per engine. Several engines may live in one process.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <typeinfo>
#include <utility>
#include <variant>
#include <vector>

#include "deepscale/communicator.h"
#include "deepscale/config.h"
#include "deepscale/unit.h"

namespace deepscale {

/// Parameters with settings of their own.
struct ParameterGroup {
  /// Whether the group takes a parameter, by its dotted name.
  std::function<bool(const std::string& name)> takes;
  /// Settings that differ from optimizer.params: lr, beta1, beta2, eps, weight_decay, momentum, dampening.
  std::map<std::string, double> settings;

  /// A group of the parameters with these names.
  static ParameterGroup named(std::vector<std::string> names, std::map<std::string, double> settings);
};

struct InitializeOptions {
  /// The ranks that share the training batch. Nothing: world_from_environment().
  std::optional<Communicator> communicator{};
  /// Submodules that are gathered around their forward when parameters are sharded (ZeRO stage 3). Everything else
  /// stays whole and is sharded as in stage 2.
  std::vector<AnyUnit> units{};
  /// Optimizer groups in order. A parameter belongs to the first that takes it; the rest form one more group.
  std::vector<ParameterGroup> groups{};
};

/// Data that a program keeps in a checkpoint beside the training state.
using ClientValue = std::variant<bool, int64_t, double, std::string>;
using ClientState = std::map<std::string, ClientValue>;

struct SaveOptions {
  std::string tag{};  ///< name of the checkpoint; empty: global_step<N>
  ClientState client_state{};
  bool save_latest = true;  ///< the file "latest" names this checkpoint from now on
};

struct LoadOptions {
  std::string tag{};   ///< empty: what the file "latest" names
  bool strict = true;  ///< parameters and buffers must be the same in model and file
  bool optimizer_states = true;
  bool lr_scheduler_states = true;
  bool module_only = false;  ///< weights, nothing else
};

struct LoadedCheckpoint {
  std::string path;          ///< the checkpoint's folder
  ClientState client_state;  ///< values of the four kinds of ClientValue; others are left out
};

class ModuleEngine {
 public:
  ~ModuleEngine();
  ModuleEngine(const ModuleEngine&) = delete;
  ModuleEngine& operator=(const ModuleEngine&) = delete;

  // --- one micro-step
  /// The module's forward. ModuleImpl is the module's type. Floating inputs become half under fp16.auto_cast.
  template <typename ModuleImpl, typename... Args>
  auto forward(Args&&... args) {
    return module_as<ModuleImpl>().forward(prepare_input(std::forward<Args>(args))...);
  }
  /// Backward of a scalar loss, divided by the accumulation steps and multiplied by the loss scale. Returns the loss
  /// divided by the accumulation steps, detached. Collective. Throws Error for a loss that is no scalar.
  at::Tensor backward(const at::Tensor& loss);
  /// Counts a micro-step; at a boundary also: clip, update, schedule. Collective.
  void step();
  /// Whether the current micro-step ends an accumulation window.
  [[nodiscard]] bool is_gradient_accumulation_boundary() const;
  /// Decides by hand from now on whether micro-steps end a window.
  void set_gradient_accumulation_boundary(bool is_boundary);
  /// Forgets all gradients, also those that were already reduced.
  void zero_grad();
  void train(bool on = true);
  void eval() { train(false); }

  // --- facts
  [[nodiscard]] int64_t global_steps() const;  ///< boundaries so far, skipped ones included
  [[nodiscard]] int64_t global_samples() const;
  [[nodiscard]] int64_t micro_steps() const;
  [[nodiscard]] int64_t skipped_steps() const;  ///< left out because a gradient was not finite
  [[nodiscard]] bool was_step_applied() const;  ///< false when the last step() was no boundary or was skipped
  [[nodiscard]] std::vector<double> learning_rates() const;   ///< one per group
  void set_learning_rates(const std::vector<double>& rates);  ///< one per group; a schedule overwrites them
  [[nodiscard]] double grad_norm() const;  ///< of the last boundary, before clipping; NaN before the first
  [[nodiscard]] double loss_scale() const;
  [[nodiscard]] int64_t train_batch_size() const;
  [[nodiscard]] int64_t micro_batch_size() const;  ///< per rank
  [[nodiscard]] int64_t gradient_accumulation_steps() const;
  [[nodiscard]] const Config& config() const;
  [[nodiscard]] const Communicator& communicator() const;
  [[nodiscard]] torch::nn::Module& module() const;
  template <typename ModuleImpl>
  [[nodiscard]] ModuleImpl& module_as() const {
    return checked_cast<ModuleImpl>(module());
  }
  [[nodiscard]] std::string description() const;                      ///< several lines: sizes, groups, memory
  [[nodiscard]] std::map<std::string, int64_t> memory_bytes() const;  ///< what this rank holds, by kind

  // --- values of one parameter, by dotted name. Throw ConfigError for an unknown name.
  [[nodiscard]] at::Tensor full_parameter(const std::string& name);  ///< fp32, a private copy. Collective.
  /// Gradient of the accumulation window so far, averaged and unscaled; undefined when there is none. Collective.
  [[nodiscard]] at::Tensor full_gradient(const std::string& name);
  void set_full_parameter(const std::string& name, const at::Tensor& value);  ///< same value on all ranks. Collective.

  // --- files; docs/cpp.md draws the layout. Collective.
  /// The folder appears as a whole, with a manifest of checksums, or not at all. Throws IoError when a file cannot be
  /// written, and on the other ranks CheckpointError that names the rank.
  void save_checkpoint(const std::string& directory, const SaveOptions& options = {});
  /// With checkpoint.async_save: returns when the checkpoint that is being written beside training is valid. Throws
  /// what went wrong, on all ranks. Saving and loading do this first. Collective.
  void wait_for_checkpoint();
  /// Nothing when there is no file "latest" and no tag was given. All files are checked before anything changes; throws
  /// CheckpointError that names the file for one that is missing, cut, or does not fit this model and number of ranks.
  std::optional<LoadedCheckpoint> load_checkpoint(const std::string& directory, const LoadOptions& options = {});
  /// All parameters and buffers in fp32 as one safetensors file, written by rank 0.
  void save_weights(const std::string& path);

 private:
  class Impl;
  friend std::unique_ptr<ModuleEngine> initialize(std::shared_ptr<torch::nn::Module>, const Config&,
                                                  const InitializeOptions&);
  explicit ModuleEngine(std::unique_ptr<Impl> impl);

  [[noreturn]] static void wrong_module_type(const torch::nn::Module& module, const std::string& wanted);

  template <typename ModuleImpl>
  static ModuleImpl& checked_cast(torch::nn::Module& module) {
    auto* typed = dynamic_cast<ModuleImpl*>(&module);
    if (typed == nullptr) wrong_module_type(module, typeid(ModuleImpl).name());
    return *typed;
  }
  at::Tensor prepare_input(const at::Tensor& input) const;
  template <typename T>
  T&& prepare_input(T&& input, std::enable_if_t<!std::is_convertible_v<T, at::Tensor>>* = nullptr) const {
    return std::forward<T>(input);
  }

  std::unique_ptr<Impl> impl_;
};

/// Makes an engine over the model's parameters, which it casts (fp16, bf16), shards and from then on owns the values
/// of; rank 0's values count. Buffers keep their dtype. config: a parsed configuration, or what `--deepspeed_config`
/// accepts: path, JSON text or base64url. The model stays on its device. Collective. Throws ConfigError,
/// UnsupportedError for a setting that only exists in Python, CommError.
std::unique_ptr<ModuleEngine> initialize(std::shared_ptr<torch::nn::Module> model, const Config& config,
                                         const InitializeOptions& options = {});
std::unique_ptr<ModuleEngine> initialize(std::shared_ptr<torch::nn::Module> model, const std::string& config,
                                         const InitializeOptions& options = {});

/// Fills parameters and buffers of a model from a safetensors file, by name; dtypes are converted. Names that share one
/// tensor need to be there once. Throws CheckpointError for a damaged file, missing or foreign names, or wrong shapes;
/// nothing is changed then.
void load_weights(torch::nn::Module& model, const std::string& path);
/// The opposite: parameters (in their dtypes) and buffers of a model; shared tensors once.
void save_weights(const torch::nn::Module& model, const std::string& path);

}  // namespace deepscale
