#include "zero/sharding_plan_sizes.h"

#include <algorithm>

#include "base/error.h"

namespace deepscale {
namespace {

ShardingSizes sizes_for(int64_t stage, const ZeroOptions& zero, int ranks) {
  const ShardedStates states = sharded_states(stage);
  const auto mics = static_cast<int>(std::min<int64_t>(zero.mics_shard_size, ranks));
  const int shard = mics > 0 ? mics : ranks;
  DS_CHECK_AS(ConfigError, ranks % shard == 0,
              "zero_optimization.mics_shard_size is {}, but there are {} ranks: choose a divisor", shard, ranks);
  const auto node = static_cast<int>(std::max<int64_t>(zero.zero_hpz_partition_size, 1));
  DS_CHECK_AS(ConfigError, !states.params || shard % node == 0,
              "zero_optimization.zero_hpz_partition_size is {}, but parameters are sharded over {} ranks: choose a "
              "divisor",
              node, shard);
  if (!states.optimizer) return {ranks, 1, 1, 1, ranks, 1, false};
  return {.data = ranks,
          .params = states.params ? shard : 1,
          .grads = states.grads ? shard : 1,
          .optimizer = shard,
          .replicas = ranks / shard,
          .node = states.params ? node : 1,
          .shards_params = states.params,
          .shards_grads = states.grads};
}

}  // namespace

ShardedStates sharded_states(int64_t stage) {
  DS_CHECK_AS(ConfigError, stage >= 0 && stage <= 3, "zero_optimization.stage must be 0..3, got {}", stage);
  return {stage >= 3, stage >= 2, stage >= 1};
}

ShardingSizes sizes_for_units(const ZeroOptions& zero, int ranks) {
  return sizes_for(zero.stage, zero, ranks);
}

ShardingSizes sizes_for_buckets(const ZeroOptions& zero, int ranks) {
  return sizes_for(std::min<int64_t>(zero.stage, 2), zero, ranks);
}

}  // namespace deepscale
