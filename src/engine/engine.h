// One training step over registered parameters: composes units, scheduler, reducer, norm, loss scale and optimizer, and
// computes nothing itself. Knows nothing of modules: Python's engine and the C++ ModuleEngine stand on top of it.
//
// Life of a step: pre_forward/post_forward around modules whose parameters are sharded; backward_seed(); autograd runs
// and the hooks that the engine put on each trainable parameter take its gradient over; finish_backward() after each
// backward; at a boundary step(). Every call that may wait for other ranks is marked collective. Threads: one thread at
// a time; autograd's thread counts, and is never active at the same time as the caller's.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "memory/residency.h"
#include "zero/grad_norm.h"
#include "zero/grad_reducer.h"
#include "zero/loss_scaler.h"
#include "zero/param_scheduler.h"
#include "zero/param_unit.h"
#include "zero/sharded_optimizer.h"

namespace deepscale {

/// A setting that must be the same on all ranks.
struct SharedSetting {
  std::string name;
  uint64_t fingerprint = 0;
};

struct EngineOptions {
  PlanGroups groups;
  ShardingPlan plan;  ///< of parameters that no unit holds yet: the engine buckets them
  int64_t bucket_numel = 500'000'000;
  GradReducer::Options reduction;
  ParamScheduler::Options schedule;
  LossScaler::Options loss_scale;
  NativeOptimizerOptions optimizer;
  double gradient_clipping = 0.0;                 ///< global L2 norm; 0: off
  bool skip_nonfinite = true;                     ///< leave out the update when a gradient is not finite
  std::optional<at::Device> optimizer_placement;  ///< nothing: where the parameters are
  double optimizer_placed_share = 1.0;            ///< of the elements; the rest stays where the parameters are
  std::optional<FileTierOptions> optimizer_file;  ///< master copies and states live there (pool_bytes: at least)
  int64_t optimizer_block_numel = 1 << 22;        ///< so many elements of them visit memory at a time
  std::optional<FileTierOptions> param_file;      ///< shards of parameters live there (pool_bytes: at most)
  int64_t param_resident_numel = 0;               ///< elements over all ranks that stay in memory nevertheless
  bool param_resident_adapts = false;             ///< an engine without optimizer keeps as many as memory has room for
  std::vector<SharedSetting> shared_settings;     ///< compared over ranks when the engine is built
};

/// One parameter of the model. Tied parameters are listed once.
struct EngineParam {
  std::string name;
  at::Tensor tensor;
  int group = -1;                   ///< optimizer group, -1: frozen
  std::shared_ptr<ParamUnit> unit;  ///< null: the engine buckets it (or leaves it alone when frozen)
};

class Engine {
 public:
  /// Collective: units are made, values come from rank 0 of groups.data.
  Engine(EngineOptions options, std::vector<EngineParam> params);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // --- modules with sharded parameters
  void pre_forward(ParamUnit& unit, const std::vector<at::Tensor>& inputs);
  void post_forward(ParamUnit& unit, const std::vector<at::Tensor>& outputs);
  void reset_order();

  // --- one micro-step
  /// The gradient of a loss to start a pass with. Ends a pass that an exception cut off (collective then).
  [[nodiscard]] at::Tensor backward_seed(const at::Tensor& loss, double divide_by);
  /// A pass is under way that somebody else started.
  void begin_backward() { reducer_->begin_backward(); }
  void finish_backward();                           // collective
  bool step(const std::vector<GroupHyper>& hyper);  // collective
  void zero_grad();                                 // collective after a backward that an exception cut off

  // --- the same in halves, for outside optimizers
  bool prepare_step();             // collective
  void finish_step(bool applied);  // collective
  [[nodiscard]] std::vector<Fragment> fragments() { return optimizer_->fragments(); }

  /// Throws Error when an error has cut a step or a load off, until a load is through: the states are not of one step.
  void check_whole() const;

  // --- facts
  [[nodiscard]] double grad_norm() const { return grad_norm_; }
  [[nodiscard]] bool overflow() const { return overflow_; }
  [[nodiscard]] const std::string& nonfinite_parameter() const { return nonfinite_parameter_; }
  [[nodiscard]] LossScaler& loss_scaler() { return scaler_; }
  [[nodiscard]] int64_t skipped_steps() const { return skipped_steps_; }
  [[nodiscard]] int64_t optimizer_steps() const { return optimizer_steps_; }
  void set_optimizer_steps(int64_t steps) { optimizer_steps_ = steps; }
  /// Before masters or states are written one by one. Until end_load() the engine is not whole: step() refuses.
  void begin_load();
  /// The native optimizer as before its first step, to load states; begins a load.
  /// states_follow: every state of every parameter is written before that, so that zeros need not be (a pass over
  /// memory or files).
  void reset_optimizer(bool states_follow = false);
  /// states: optimizer states were loaded, too. A load of weights alone does not mend states that are not whole.
  void end_load(bool states = true);
  struct Memory {
    int64_t parameters = 0, gradients = 0, master = 0, optimizer = 0, buckets = 0;
  };
  [[nodiscard]] Memory memory_bytes() const;
  /// What the files of this rank did so far; nothing for states that are not in files. Parameters of zero.Init may be
  /// in several tiers: these are sums then.
  struct FileUse {
    std::optional<FileTierFacts> optimizer;  ///< master copies, optimizer states, and gradients of stages 2 and 3
    std::optional<FileTierFacts> parameters;
  };
  [[nodiscard]] FileUse file_use() const;
  [[nodiscard]] std::string description() const;
  [[nodiscard]] const std::vector<EngineParam>& params() const { return params_; }

  // --- full values and local pieces. key: "fp32", "grad" or a state's name. index: position in params.
  [[nodiscard]] std::vector<std::string> state_keys() const { return optimizer_->options().state_names(); }
  [[nodiscard]] std::optional<at::Tensor> read_full(int index, const std::string& key);  // collective
  void write_full(int index, const std::string& key, const at::Tensor& value);  // collective for "fp32" and "grad"
  [[nodiscard]] std::optional<at::Tensor> read_local(int index, const std::string& key);  // collective for "grad"
  void write_local(int index, const std::string& key, const at::Tensor& value);           // collective for "grad"
  struct PieceRange {
    int64_t offset = 0, length = 0;
  };
  [[nodiscard]] PieceRange fragment_of(int index) const;
  void refresh_from_parameters();
  void refresh_parameters();  // collective
  void destroy();

 private:
  struct Place {
    int unit = -1;  ///< in units_; -1: a frozen parameter outside units
    int index = 0;
  };
  struct Hook;
  struct UnitUse {
    bool in_backward = false;
    bool kept = false;  ///< gathered since its last use, for the next one
    bool live = false;  ///< counted in live_numel_
    int grads_arrived = 0;
    int trainable = 0;
    bool has_frozen = false;
  };

  void check_shared_settings() const;
  void check_params();
  void collect_units();
  void make_buckets();
  /// model_position: of the first of its parameters, whose gradient comes last.
  void add_unit(std::shared_ptr<ParamUnit> unit, int model_position);
  void order_units();
  void broadcast_loose_parameters();
  void move_parameters_to_file();
  [[nodiscard]] std::vector<FileTier> tiers_of_units() const;  ///< each once
  [[nodiscard]] int64_t pool_bytes_of_params(int64_t tiers) const;
  void make_file_tier();
  void make_orders(const std::vector<int64_t>& numels);
  void build_parts();
  void install_hooks();
  void on_gradient(int unit, int index);
  void pre_backward(int unit);
  void post_backward(int unit);
  void announce_use(int unit);
  void enter_use(int unit);
  void leave_use(int unit);
  void count_live(int unit);
  void begin_forward_pass();
  void settle_residence(int unit);
  void end_backward();
  template <typename Work>
  void all_or_cut_off(const Work& work);
  [[nodiscard]] GradNorm::Result settle_norm();
  void step_units(const std::vector<GroupHyper>& hyper);
  void settle();
  void publish();
  void finish_publish(std::vector<Pending>& published);
  [[nodiscard]] int find_unit(const ParamUnit& unit) const;
  [[nodiscard]] at::Tensor local_tensor(int index, const std::string& key);
  [[nodiscard]] std::vector<ParamUnit*> unit_pointers() const;

  EngineOptions options_;
  Logger log_;
  std::vector<EngineParam> params_;
  std::vector<std::shared_ptr<ParamUnit>> units_;  ///< in the order in which backward finishes them
  std::vector<int> unit_positions_;
  std::vector<Place> places_;  ///< per parameter
  std::vector<std::vector<ShardedOptimizer::Role>> roles_;
  std::vector<UnitUse> uses_;
  std::vector<Hook> hooks_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  std::unique_ptr<FileTier> file_tier_;  ///< of the optimizer and of gradients
  std::unique_ptr<FileTier> param_tier_;
  std::unique_ptr<GradReducer> reducer_;
  std::unique_ptr<GradNorm> norm_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  std::unique_ptr<ParamScheduler> training_order_;
  std::unique_ptr<Residency> residency_;           ///< of units in files, in an engine that only runs forward
  std::unique_ptr<ParamScheduler> forward_order_;  ///< of passes without gradients, which must not disturb the other
  LossScaler scaler_;
  std::string cut_off_;  ///< what ended half way, and why; empty: nothing did

  double grad_scale_ = 1.0;
  double grad_norm_;
  bool overflow_ = false;
  bool schedules_ = false;  ///< some unit's gather moves bytes
  std::string nonfinite_parameter_;
  int64_t skipped_steps_ = 0;
  int64_t optimizer_steps_ = 0;
  int64_t live_numel_ = 0;
};

}  // namespace deepscale
