// The batch equation TB = MB * GAS * ranks.
#include <fmt/format.h>

#include "config/resolve.h"

namespace deepscale::config {
namespace {

constexpr std::string_view kBatch = "train_batch_size";
constexpr std::string_view kMicro = "train_micro_batch_size_per_gpu";
constexpr std::string_view kAccumulation = "gradient_accumulation_steps";

// Nothing when the product does not fit.
std::optional<int64_t> product(int64_t a, int64_t b) {
  if (a > kUnlimited / b) return std::nullopt;
  return a * b;
}

std::optional<int64_t> product(int64_t a, int64_t b, int64_t c) {
  const auto ab = product(a, b);
  return ab ? product(*ab, c) : std::nullopt;
}

// Fills what is missing; false when nothing can be filled.
bool fill(Options& o, int64_t ranks) {
  auto& batch = o.train_batch_size;
  auto& micro = o.train_micro_batch_size_per_gpu;
  auto& accumulation = o.gradient_accumulation_steps;
  if (batch && micro) {
    if (!accumulation) accumulation = *batch / *micro / ranks;
  } else if (batch) {
    if (!accumulation) accumulation = 1;
    micro = *batch / ranks / *accumulation;
  } else if (micro) {
    if (!accumulation) accumulation = 1;
    batch = product(*micro, *accumulation, ranks);
  }
  return batch && micro && accumulation;
}

// A quantity that was not given and came out as zero: the batch is too small for the others.
bool check_positive(const Options& o, int64_t ranks, Problems& problems) {
  const auto too_small = [&](std::string_view name, std::string_view other, int64_t other_value) {
    problems.error(name, fmt::format("would be 0: {} is {}, less than {} ({}) * data-parallel ranks ({}); it has to be "
                                     "greater than 0, so raise {} or lower the others",
                                     kBatch, *o.train_batch_size, other, other_value, ranks, kBatch));
    return false;
  };
  if (*o.train_micro_batch_size_per_gpu == 0) return too_small(kMicro, kAccumulation, *o.gradient_accumulation_steps);
  if (*o.gradient_accumulation_steps == 0) return too_small(kAccumulation, kMicro, *o.train_micro_batch_size_per_gpu);
  return true;
}

}  // namespace

void resolve_batch(Options& options, int data_parallel_size, Problems& problems) {
  const int64_t ranks = data_parallel_size;
  const bool given = options.train_batch_size || options.train_micro_batch_size_per_gpu;
  if (!fill(options, ranks)) {
    if (given) {
      problems.error(kBatch,
                     fmt::format("{} * {} * data-parallel ranks ({}) is too large", kMicro, kAccumulation, ranks));
    } else {
      problems.error(kBatch,
                     fmt::format("either {} or {} needs to be given as a number: it is missing or still \"auto\", "
                                 "and {} alone does not determine it",
                                 kBatch, kMicro, kAccumulation));
    }
    return;
  }
  if (!check_positive(options, ranks, problems)) return;
  const int64_t batch = *options.train_batch_size;
  const int64_t micro = *options.train_micro_batch_size_per_gpu;
  const int64_t accumulation = *options.gradient_accumulation_steps;
  if (product(micro, accumulation, ranks) == batch) return;
  problems.error(kBatch,
                 fmt::format("is not equal to {} * {} * data-parallel ranks: {} != {} * {} * {}; change one of them "
                             "or the number of ranks (check all batch related parameters)",
                             kMicro, kAccumulation, batch, micro, accumulation, ranks));
}

}  // namespace deepscale::config
