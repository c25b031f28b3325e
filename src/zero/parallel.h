// Elementwise work of one rank over its own threads: torch's (torch::set_num_threads, OMP_NUM_THREADS), so that no
// second pool competes with them.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/cpu/optimizers.h"

namespace deepscale {

/// Pieces begin at multiples of it; kernels::kNormBlock divides it.
inline constexpr int64_t kParallelBlock = 4096;

/// body(begin, end) over pieces that cover [0, numel), in any order and at the same time where numel is large enough
/// for several threads. The first exception is rethrown when all pieces are through. Inside another parallel region,
/// and in builds without OpenMP, one piece.
void parallel_ranges(int64_t numel, const std::function<void(int64_t begin, int64_t end)>& body);

/// body(begin, end) over pieces that cover [0, count) and have at least `grain` items each (the last one may have
/// fewer), like parallel_ranges().
void parallel_items(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

/// body(begin, end) over runs of pieces of `grain` items that cover [0, count); a thread takes the next run when it is
/// through with its last one, so that one which is slower (or interrupted) does not make the others wait. Runs shrink
/// towards the end, to one piece. One run where there is one thread.
void share_items(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

/// An optimizer kernel over a span, by several threads.
template <typename Args>
void over_threads(void (*kernel)(const Args&, const kernels::OptimizerSpan&), const Args& args,
                  const kernels::OptimizerSpan& span) {
  parallel_ranges(span.numel, [&](int64_t begin, int64_t end) { kernel(args, kernels::part_of(span, begin, end)); });
}

}  // namespace deepscale
