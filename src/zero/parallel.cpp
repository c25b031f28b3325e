#include "zero/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace deepscale {
namespace {

// 64 K elements of an Adam step take about 30 us on one core; waking a team costs about 5.
constexpr int64_t kBlocksPerThread = 16;

}  // namespace

void parallel_ranges(int64_t numel, const std::function<void(int64_t begin, int64_t end)>& body) {
  const int64_t blocks = (numel + kParallelBlock - 1) / kParallelBlock;
  at::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t first, int64_t last) {
    body(first * kParallelBlock, std::min(numel, last * kParallelBlock));
  });
}

void parallel_items(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body) {
  at::parallel_for(0, count, grain, body);
}

}  // namespace deepscale
