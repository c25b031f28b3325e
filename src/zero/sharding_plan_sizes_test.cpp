#include "zero/sharding_plan_sizes.h"

#include <gtest/gtest.h>

#include "deepscale/error.h"

namespace deepscale {
namespace {

ZeroOptions zero_of(int64_t stage) {
  ZeroOptions zero;
  zero.stage = stage;
  return zero;
}

TEST(ShardingSizesTest, EachStageShardsOneStateMore) {
  const int expected[4][4] = {{1, 1, 1, 8}, {1, 1, 8, 1}, {1, 8, 8, 1}, {8, 8, 8, 1}};
  for (int stage = 0; stage < 4; ++stage) {
    const ShardingSizes sizes = sizes_for_units(zero_of(stage), 8);
    EXPECT_EQ(sizes.data, 8);
    EXPECT_EQ(sizes.params, expected[stage][0]) << stage;
    EXPECT_EQ(sizes.grads, expected[stage][1]) << stage;
    EXPECT_EQ(sizes.optimizer, expected[stage][2]) << stage;
    EXPECT_EQ(sizes.replicas, expected[stage][3]) << stage;
    EXPECT_EQ(sizes.shards_params, stage == 3);
  }
}

TEST(ShardingSizesTest, PersistentParametersOfStage3AreThoseOfStage2) {
  const ShardingSizes sizes = sizes_for_buckets(zero_of(3), 8);
  EXPECT_EQ(sizes.params, 1);
  EXPECT_EQ(sizes.grads, 8);
  EXPECT_FALSE(sizes.shards_params);
}

TEST(ShardingSizesTest, MicsShardsOverItsGroupAndReplicatesOverTheRest) {
  ZeroOptions zero = zero_of(3);
  zero.mics_shard_size = 4;
  const ShardingSizes sizes = sizes_for_units(zero, 16);
  EXPECT_EQ(sizes.params, 4);
  EXPECT_EQ(sizes.replicas, 4);
  EXPECT_THROW((void)sizes_for_units(zero, 6), ConfigError);
}

TEST(ShardingSizesTest, NodesOfHpzDivideTheShards) {
  ZeroOptions zero = zero_of(3);
  zero.zero_hpz_partition_size = 4;
  EXPECT_EQ(sizes_for_units(zero, 8).node, 4);
  EXPECT_THROW((void)sizes_for_units(zero, 6), ConfigError);
  EXPECT_THROW((void)sizes_for_units(zero_of(4), 8), ConfigError);
}

}  // namespace
}  // namespace deepscale
