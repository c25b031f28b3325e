// The optimizer over this rank's shards, for every plan, memory tier, native kernel or outside optimizer.
//
// For each unit, the trainable pieces of this rank's shard form runs: stretches of the shard with one parameter group,
// merged across padding (what happens there harms nobody). Master copies and states exist for the runs only, so
// frozen parameters cost nothing. Where the model has the master's dtype and device, the master IS the shard.
//
// [Note: blocks] Master and states of a unit stand in blocks that are in memory one at a time when they live in files:
// a step reads the blocks that follow and writes those that went before while it updates one, over the boundaries of
// units, as far ahead as the tier's buffers have room. On device and host a unit has one block. Updates are
// elementwise, so where blocks begin changes no bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "memory/file_tier.h"
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
  /// parameters are for the rest. With `file`, the first units' live there instead, and visit the host.
  struct Placement {
    at::Device device = at::kCPU;
    double share = 1.0;
    const FileTier* file = nullptr;
    int64_t block_numel = 1 << 24;  ///< largest block in a file
  };
  /// Throws ConfigError when the optimizer cannot work on files: it needs whole matrices, or is not ours.
  ShardedOptimizer(std::vector<ParamUnit*> units, std::vector<std::vector<Role>> roles, NativeOptimizerOptions options,
                   Placement placement);

  [[nodiscard]] const NativeOptimizerOptions& options() const { return options_; }

  /// Throws when `hyper` has too few groups or asks for states that do not exist. The same on all ranks.
  void check_hyper(const std::vector<GroupHyper>& hyper) const;

  /// From now until end_steps(), step_unit() of units in their order reads ahead; gradients by `gradient`, which says
  /// whether there was room.
  void begin_steps(std::function<bool(int unit)> gradient);
  void end_steps() { read_gradient_ = nullptr; }
  /// Updates one unit from its settled gradient; writes the unit's shard. step is 1-based.
  void step_unit(int unit, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper, int64_t step,
                 double grad_scale);

  /// Outside optimizers: fragments with fp32 gradients made from the settled ones.
  [[nodiscard]] std::vector<Fragment> fragments();
  void prepare_external(int unit, const at::Tensor& gradient, double grad_scale);
  void finish_external(int unit);

  /// States as before the first step; with zeros = false their values are left, for a caller that writes all of them.
  void reset_states(bool zeros);
  /// Position of a state in options().state_names(). Throws, alike on all ranks, for a name that is none of them.
  [[nodiscard]] size_t state_index(const std::string& key) const;
  /// Local piece of a parameter's master ("fp32") or state, 1-D: a view where it is in memory, a copy where it lives in
  /// a file. Undefined when it has none here.
  [[nodiscard]] at::Tensor read_local(int unit, int index, const std::string& key);
  /// Stores values (any float dtype and shape, as many as read_local() has).
  void write_local(int unit, int index, const std::string& key, const at::Tensor& value);
  /// Shard from master (publish follows).
  void store_shard(int unit);
  /// Master from shard, for one parameter or (index -1) all of a unit.
  void refresh_master(int unit, int index);

  [[nodiscard]] int64_t master_bytes() const;
  [[nodiscard]] int64_t state_bytes() const;

 private:
  struct Run {
    int64_t shard_begin = 0;
    int64_t length = 0;
    int group = 0;
    int64_t compact_begin = 0;  ///< in the block
    UpdateRun tensors;          ///< grad is filled in for each step
  };
  struct Block {
    std::vector<Run> runs;
    at::Tensor master;  ///< [numel], undefined when the shard is the master
    std::vector<at::Tensor> states;
    at::Tensor external_grad;         ///< [numel], in the master's dtype
    std::vector<FileTensor> in_file;  ///< what master and states live in, when that is a file

    [[nodiscard]] int64_t numel() const { return runs.empty() ? 0 : runs.back().compact_begin + runs.back().length; }
    bool start_load();
    void load();
    void store();
    void drop();
  };
  struct UnitState {
    ParamUnit* unit = nullptr;
    at::Device placement = at::kCPU;
    const FileTier* file = nullptr;
    std::vector<Role> roles;
    std::vector<Block> blocks;
  };
  /// A stretch of one parameter's piece that lies in one run.
  struct Stretch {
    Block* block = nullptr;
    Run* run = nullptr;
    int64_t in_run = 0;    ///< first element, counted in the run
    int64_t in_piece = 0;  ///< the same element, counted in the piece
    int64_t length = 0;
  };

  void check_file_placement() const;
  void build_runs(UnitState& state, int64_t block_numel) const;
  void allocate(UnitState& state) const;
  void step_block(UnitState& state, Block& block, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper,
                  int64_t step, double grad_scale) const;
  void copy_to_master(UnitState& state, int index);
  [[nodiscard]] static bool overwrites_shard(const UnitState& state);
  void read_ahead();
  [[nodiscard]] static std::vector<Stretch> stretches(UnitState& state, const ShardLayout::Piece& piece);
  [[nodiscard]] at::Tensor values_of(const Stretch& stretch, const std::string& key) const;
  void step_lamb(UnitState& state, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper, int64_t step,
                 double grad_scale) const;
  void step_muon(UnitState& state, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper, int64_t step,
                 double grad_scale) const;
  [[nodiscard]] UpdateRun piece_run(UnitState& state, const ShardLayout::Piece& piece,
                                    const at::Tensor& gradient) const;

  std::vector<UnitState> units_;
  NativeOptimizerOptions options_;
  int last_group_ = -1;
  std::function<bool(int unit)> read_gradient_;  ///< between begin_steps() and end_steps()
  size_t ahead_unit_ = 0;                        ///< the next block to read ahead
  size_t ahead_block_ = 0;
};

/// Full fp32 tensor of which every rank of `group` holds one piece (exact: bits are combined as integers). Collective.
at::Tensor assemble(const Communicator& group, const at::Tensor& piece, int64_t offset, int64_t numel,
                    const std::string& tag);

}  // namespace deepscale
