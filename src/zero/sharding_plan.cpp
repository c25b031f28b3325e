#include "zero/sharding_plan.h"

#include "base/error.h"

namespace deepscale {

ShardingPlan plan_for_stage(int stage, const PlanGroups& groups) {
  const Communicator self = Communicator::self();
  const Communicator& shard = groups.shard;
  DS_CHECK_AS(ConfigError, stage >= 0 && stage <= 3, "zero_optimization.stage must be 0..3, got {}", stage);
  DS_CHECK_AS(ConfigError, shard.size() * groups.replica.size() == groups.data.size(),
              "the shard group ({} ranks) times the replica group ({} ranks) must be the data group ({} ranks); choose "
              "zero_optimization.mics_shard_size so that it divides the number of ranks",
              shard.size(), groups.replica.size(), groups.data.size());
  if (stage == 0) return {groups.data, self, self, self, groups.data, self};
  return {.data = groups.data,
          .params = stage >= 3 ? shard : self,
          .grads = stage >= 2 ? shard : self,
          .optimizer = shard,
          .replicas = groups.replica,
          .node = stage >= 3 ? groups.node : self,
          .shards_grads = stage >= 2};
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
