// How many ranks share each state: the sizes of a sharding plan's groups, without the groups. For plans of memory,
// which are made before any communicator exists. Torch-free.
#pragma once

#include "deepscale/options_zero.h"

namespace deepscale {

/// Sizes of the groups of a ShardingPlan (sharding_plan.h has what they mean).
struct ShardingSizes {
  int data = 1;
  int params = 1;
  int grads = 1;
  int optimizer = 1;
  int replicas = 1;
  int node = 1;
  /// Parameters are in units that are gathered around their use, even if there is one rank.
  bool shards_params = false;
  /// Gradients are sharded, if only over one rank.
  bool shards_grads = false;

  [[nodiscard]] bool reduces_each_micro_batch() const { return grads > 1; }
  [[nodiscard]] int shards() const { return optimizer; }
};

/// Which states stage 0..3 shards. Throws ConfigError for other numbers.
struct ShardedStates {
  bool params = false;
  bool grads = false;
  bool optimizer = false;
};
ShardedStates sharded_states(int64_t stage);

/// Of a model's parameters, and of those that no unit holds, with `ranks` data-parallel ranks. Throws ConfigError when
/// the sizes of MiCS and hpZ do not divide them.
ShardingSizes sizes_for_units(const ZeroOptions& zero, int ranks);
ShardingSizes sizes_for_buckets(const ZeroOptions& zero, int ranks);

}  // namespace deepscale
