#include "zero/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

static_assert(kParallelBlock % kernels::kNormBlock == 0);

TEST(Parallel, EveryElementIsVisitedOnceInAlignedPieces) {
  for (const int64_t numel : {int64_t{0}, int64_t{1}, kParallelBlock, int64_t{1'000'003}}) {
    std::vector<std::atomic<int>> visits(numel);
    parallel_ranges(numel, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % kParallelBlock, 0);
      for (int64_t i = begin; i < end; ++i) ++visits[i];
    });
    for (int64_t i = 0; i < numel; ++i) ASSERT_EQ(visits[i], 1) << i << " of " << numel;
  }
}

TEST(Parallel, SharedItemsAreTakenOnceInWholePieces) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{1000}}) {
    std::vector<std::atomic<int>> visits(count);
    share_items(count, 64, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % 64, 0);
      for (int64_t i = begin; i < end; ++i) ++visits[i];
    });
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(visits[i], 1) << i << " of " << count;
  }
}

TEST(Parallel, AnExceptionOfAPieceReachesTheCaller) {
  const auto fail = [](int64_t, int64_t) { throw std::runtime_error("piece"); };
  EXPECT_THROW(parallel_ranges(1'000'000, fail), std::runtime_error);
  EXPECT_THROW(share_items(1'000, 10, fail), std::runtime_error);
}

}  // namespace
}  // namespace deepscale
