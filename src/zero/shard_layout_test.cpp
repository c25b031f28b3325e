#include "zero/shard_layout.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

void expect_sound(const ShardLayout& layout) {
  std::vector<std::vector<int>> owners(layout.tensors());
  for (int i = 0; i < layout.tensors(); ++i) {
    owners[i].assign(layout.numel(i), 0);
    EXPECT_EQ(layout.offset(i) % ShardLayout::kAlignment, 0);
    EXPECT_LE(layout.offset(i) + layout.numel(i), layout.total_numel());
    if (i > 0) {
      EXPECT_GE(layout.offset(i), layout.offset(i - 1) + layout.numel(i - 1));
    }
  }
  for (int shard = 0; shard < layout.shards(); ++shard) {
    for (const auto& piece : layout.pieces(shard)) {
      EXPECT_EQ(piece.tensor_offset % kernels::kNormBlock, 0);
      EXPECT_EQ(layout.offset(piece.tensor) + piece.tensor_offset, shard * layout.shard_numel() + piece.shard_offset);
      EXPECT_LE(piece.shard_offset + piece.length, layout.shard_numel());
      for (int64_t k = 0; k < piece.length; ++k) ++owners[piece.tensor][piece.tensor_offset + k];
    }
  }
  for (const auto& tensor : owners) {
    for (const int count : tensor) EXPECT_EQ(count, 1);
  }
}

TEST(ShardLayout, EveryElementHasOneOwnerAndBlocksAreNeverCut) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<int64_t> numels(random() % 12);
    for (auto& numel : numels) numel = random() % 3 == 0 ? random() % 40 : random() % 9000;
    for (const int shards : {1, 2, 3, 4, 7}) expect_sound(ShardLayout(numels, shards));
  }
}

TEST(ShardLayout, OneShardHasNoPaddingBeyondAlignment) {
  const ShardLayout layout({64, 8, 64}, 1);
  EXPECT_EQ(layout.total_numel(), 64 + 32 + 64);
  EXPECT_EQ(layout.payload_numel(), 136);
}

TEST(ShardLayout, PaddingOfLargeUnitsIsBelowTwoBlocksAShard) {
  const ShardLayout layout({1000000, 384, 384, 777777}, 4);
  EXPECT_LE(layout.total_numel() - layout.payload_numel(), 4 * 2 * kernels::kNormBlock);
}

TEST(ShardLayout, EmptyAndZeroElementTensorsAreFine) {
  expect_sound(ShardLayout({}, 3));
  expect_sound(ShardLayout({0, 5, 0}, 2));
}

}  // namespace
}  // namespace deepscale
