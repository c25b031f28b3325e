// The sharding plan: the only reader of the ZeRO stage. A plan names, for each of the three states of training, the
// group of ranks over which it is sharded. A group of one means replicated. Everything else in src/zero asks group
// sizes only.
//
//                params   grads   optimizer   replicas (all-reduce at the boundary)
//   stage 0      self     self    self        data
//   stage 1      self     self    data        self
//   stage 2      self     data    data        self
//   stage 3      data     data    data        self
//   MiCS/HSDP    shard    shard   shard       replica
// Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054); Zhang et al. 2022, "MiCS" (arXiv 2205.00119).
#pragma once

#include "comm/communicator.h"
#include "deepscale/options_zero.h"

namespace deepscale {

/// The groups that exist. `shard` x `replica` split `data` (MiCS/HSDP); without them shard = data and replica = self.
/// `node` is hpZ's secondary group, self when unused.
struct PlanGroups {
  Communicator data;
  Communicator shard;
  Communicator replica;
  Communicator node;

  /// Plain data parallelism over `data`.
  static PlanGroups over(const Communicator& data) { return {data, data, Communicator::self(), Communicator::self()}; }
};

/// The plan of one unit, as groups. Invariants: each group's size is 1 or optimizer.size().
struct ShardingPlan {
  Communicator data;       ///< averages run over it; initial values come from its rank 0
  Communicator params;     ///< gather: params -> full
  Communicator grads;      ///< reduce: full -> grads
  Communicator optimizer;  ///< settle: grads -> optimizer; publish: optimizer -> params
  Communicator replicas;   ///< settle, second half: all-reduce
  Communicator node;       ///< hpZ
  bool releases = false;   ///< released between uses even by a single rank: param.data then looks as it does on many
  /// Gradients are sharded, if only over one rank: where they live elsewhere than in memory, they leave it.
  bool shards_grads = false;

  /// Gradients leave the rank in every micro-batch (a sharded gradient) instead of once per boundary.
  [[nodiscard]] bool reduces_each_micro_batch() const { return !grads.is_self(); }
  [[nodiscard]] bool shards_params() const { return releases || !params.is_self(); }
  [[nodiscard]] int shards() const { return optimizer.size(); }
  [[nodiscard]] int shard_rank() const { return optimizer.rank(); }
};

/// stage in 0..3. Throws ConfigError otherwise.
ShardingPlan plan_for_stage(int stage, const PlanGroups& groups);
/// Plan of a model's parameters, and of those that no ParamUnit holds (stage 3's small persistent ones).
ShardingPlan plan_for_units(const ZeroOptions& zero, const PlanGroups& groups);
ShardingPlan plan_for_buckets(const ZeroOptions& zero, const PlanGroups& groups);
/// Plan of parameters that zero.Init shards while the model is being built.
ShardingPlan plan_for_sharded_parameters(const PlanGroups& groups);
/// Plan of parameters that stay gathered although the others are sharded (stage 3's small persistent parameters).
ShardingPlan plan_for_persistent(int stage, const PlanGroups& groups);

}  // namespace deepscale
