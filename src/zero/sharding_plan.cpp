#include "zero/sharding_plan.h"

#include "base/error.h"
#include "zero/sharding_plan_sizes.h"

namespace deepscale {

ShardingPlan plan_for_stage(int stage, const PlanGroups& groups) {
  const Communicator self = Communicator::self();
  const Communicator& shard = groups.shard;
  const ShardedStates states = sharded_states(stage);
  DS_CHECK_AS(ConfigError, shard.size() * groups.replica.size() == groups.data.size(),
              "the shard group ({} ranks) times the replica group ({} ranks) must be the data group ({} ranks); choose "
              "zero_optimization.mics_shard_size so that it divides the number of ranks",
              shard.size(), groups.replica.size(), groups.data.size());
  if (!states.optimizer) return {groups.data, self, self, self, groups.data, self};
  return {.data = groups.data,
          .params = states.params ? shard : self,
          .grads = states.grads ? shard : self,
          .optimizer = shard,
          .replicas = groups.replica,
          .node = states.params ? groups.node : self,
          .shards_grads = states.grads};
}

ShardingPlan plan_for_sharded_parameters(const PlanGroups& groups) {
  ShardingPlan plan = plan_for_stage(3, groups);
  plan.releases = true;
  return plan;
}

ShardingPlan plan_for_persistent(int stage, const PlanGroups& groups) {
  return plan_for_stage(stage > 2 ? 2 : stage, groups);
}

ShardingPlan plan_for_units(const ZeroOptions& zero, const PlanGroups& groups) {
  return plan_for_stage(static_cast<int>(zero.stage), groups);
}

ShardingPlan plan_for_buckets(const ZeroOptions& zero, const PlanGroups& groups) {
  return plan_for_persistent(static_cast<int>(zero.stage), groups);
}

}  // namespace deepscale
