#include "comm/topology.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "deepscale/error.h"

namespace deepscale {
namespace {

using Ranks = std::vector<int>;

TEST(ShardTopology, ShardsAreConsecutiveAndReplicasAreEveryNth) {
  const ShardTopology topology(8, 2);
  EXPECT_EQ(topology.shard_of(5), (Ranks{4, 5}));
  EXPECT_EQ(topology.replicas_of(5), (Ranks{1, 3, 5, 7}));
  EXPECT_EQ(topology.shard_count(), 4);
}

TEST(ShardTopology, EveryRankIsInExactlyOneShardAndOneReplicaGroup) {
  for (const auto& [world, shard] : {std::pair{1, 1}, {6, 3}, {6, 2}, {8, 8}, {12, 1}}) {
    const ShardTopology topology(world, shard);
    for (const auto& groups : {topology.all_shards(), topology.all_replicas()}) {
      Ranks seen;
      for (const Ranks& group : groups) seen.insert(seen.end(), group.begin(), group.end());
      std::sort(seen.begin(), seen.end());
      Ranks expected(static_cast<size_t>(world));
      std::iota(expected.begin(), expected.end(), 0);
      EXPECT_EQ(seen, expected) << world << " ranks in shards of " << shard;
    }
  }
}

TEST(ShardTopology, AShardAndAReplicaGroupMeetInOneRank) {
  const ShardTopology topology(12, 4);
  for (int rank = 0; rank < 12; ++rank) {
    for (const Ranks& shard : topology.all_shards()) {
      const Ranks replicas = topology.replicas_of(rank);
      Ranks common;
      std::set_intersection(shard.begin(), shard.end(), replicas.begin(), replicas.end(), std::back_inserter(common));
      EXPECT_EQ(common.size(), 1U);
    }
  }
}

TEST(ShardTopology, ASizeThatDoesNotDivideNamesTheSetting) {
  try {
    const ShardTopology topology(8, 3);
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("zero_optimization.mics_shard_size: 3 does not divide the 8 ranks"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(ShardTopology(4, 8), ConfigError);
  EXPECT_THROW(ShardTopology(4, 0), ConfigError);
}

}  // namespace
}  // namespace deepscale
