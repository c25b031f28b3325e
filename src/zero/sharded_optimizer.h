// The optimizer over this rank's shards, for every plan, memory tier, native kernel or outside optimizer.
//
// For each unit, the trainable pieces of this rank's shard form runs: stretches of the shard with one parameter group,
// merged across padding (what happens there harms nobody). Master copies and states exist for the runs only, so
// frozen parameters cost nothing. Where the model has the master's dtype and device, the master IS the shard.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "zero/native_optimizer.h"
#include "zero/param_unit.h"

namespace deepscale {

/// This rank's piece of one trainable parameter, as an outside optimizer sees it.
struct Fragment {
  int model_index = 0;
  int group = 0;
  int64_t offset = 0;  ///< in the flattened parameter
  int64_t length = 0;
  at::Tensor master;  ///< in master_dtype; full shape when the parameter is not sharded, else [length]
  at::Tensor grad;    ///< same dtype and shape, after prepare_external
};

class ShardedOptimizer {
 public:
  /// Where tensor i of unit u stands in the model and in which group it is (-1: frozen).
  struct Role {
    int model_index = -1;
    int group = -1;
  };

  /// Where master copies and states live: on `device` for the first units, up to `share` of all elements, and where the
  /// parameters are for the rest.
  struct Placement {
    at::Device device;
    double share = 1.0;
  };
  ShardedOptimizer(std::vector<ParamUnit*> units, std::vector<std::vector<Role>> roles, NativeOptimizerOptions options,
                   Placement placement);

  [[nodiscard]] const NativeOptimizerOptions& options() const { return options_; }

  /// Throws when `hyper` has too few groups or asks for states that do not exist. The same on all ranks.
  void check_hyper(const std::vector<GroupHyper>& hyper) const;

  /// Updates one unit from its settled gradient; writes the unit's shard. step is 1-based.
  void step_unit(int unit, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper, int64_t step,
                 double grad_scale);

  /// Outside optimizers: fragments with fp32 gradients made from the settled ones.
  [[nodiscard]] std::vector<Fragment> fragments();
  void prepare_external(int unit, const at::Tensor& gradient, double grad_scale);
  void finish_external(int unit);

  /// States as before the first step.
  void reset_states();
  /// To be called after a state of the unit was written through local().
  void note_written_states(int unit);

  /// Position of a state in options().state_names(). Throws, alike on all ranks, for a name that is none of them.
  [[nodiscard]] size_t state_index(const std::string& key) const;
  /// Local piece of a parameter's master ("fp32") or state; undefined when it has none here.
  [[nodiscard]] at::Tensor local(int unit, int index, const std::string& key);
  /// Shard from master (publish follows), or master from shard, for one parameter (index >= 0) or all of a unit.
  void store_shard(int unit);
  void refresh_master(int unit, int index);

  [[nodiscard]] int64_t master_bytes() const;
  [[nodiscard]] int64_t state_bytes() const;

 private:
  struct Run {
    int64_t shard_begin = 0;
    int64_t length = 0;
    int group = 0;
    int64_t compact_begin = 0;
    UpdateRun tensors;  ///< grad is filled in for each step
  };
  struct UnitState {
    ParamUnit* unit = nullptr;
    at::Device placement = at::kCPU;
    std::vector<Role> roles;
    std::vector<Run> runs;
    at::Tensor master;  ///< [compact], undefined when the shard is the master
    std::vector<at::Tensor> states;
    at::Tensor external_grad;  ///< [compact], in the master's dtype
  };

  void build_runs(UnitState& state) const;
  void allocate(UnitState& state) const;
  void step_lamb(UnitState& state, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper, int64_t step,
                 double grad_scale) const;
  void step_muon(UnitState& state, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper, int64_t step,
                 double grad_scale) const;
  [[nodiscard]] UpdateRun piece_run(const UnitState& state, const ShardLayout::Piece& piece,
                                    const at::Tensor& gradient) const;
  [[nodiscard]] int64_t compact_offset(const UnitState& state, int64_t shard_offset) const;

  std::vector<UnitState> units_;
  NativeOptimizerOptions options_;
  int last_group_ = -1;
};

/// Full fp32 tensor of which every rank of `group` holds one piece (exact: bits are combined as integers). Collective.
at::Tensor assemble(const Communicator& group, const at::Tensor& piece, int64_t offset, int64_t numel,
                    const std::string& tag);

}  // namespace deepscale
