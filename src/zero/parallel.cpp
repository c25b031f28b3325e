#include "zero/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

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

void share_items(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body) {
  const int64_t pieces = (count + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(pieces, at::in_parallel_region() ? 1 : at::get_num_threads());
  if (threads <= 1) return body(0, count);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    int64_t first = next.load(std::memory_order_relaxed);
    while (first < pieces) {
      // Long runs first (what is read streams best so), short ones where threads are to end together.
      const int64_t run = std::max<int64_t>(1, (pieces - first) / (2 * threads));
      if (!next.compare_exchange_weak(first, first + run, std::memory_order_relaxed)) continue;
      body(first * grain, std::min(count, (first + run) * grain));
      first = next.load(std::memory_order_relaxed);
    }
  });
}

}  // namespace deepscale
