// Sizes by which the engine makes its buffers (engine_setup.cpp) and a memory plan counts them (plan_builder.cpp):
// written once, so that plans stay true. Bytes, or elements where a name says numel. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>

namespace deepscale {

/// A bucket never needs to be larger than this to run at full speed, whatever reduce_bucket_size allows; smaller
/// buckets overlap better and keep gradients in cache between reduction, norm and update.
inline constexpr int64_t kLargestUsefulBucketNumel = int64_t{1} << 23;

/// Of optimizer state in files: so many elements visit memory at a time, unless sub_group_size is smaller.
inline constexpr int64_t kStateBlockNumel = int64_t{1} << 22;

/// Buffers of the file tier are whole MiB; a block has at most four tensors.
inline constexpr int64_t kBufferSlackBytes = int64_t{4} << 20;

/// Elements of a bucket, of at least one parameter.
constexpr int64_t bucket_limit_numel(int64_t reduce_bucket_size) {
  return std::max<int64_t>(std::min(reduce_bucket_size, kLargestUsefulBucketNumel), 1);
}

/// Pool of parameters in files: at least one unit that is used, one that is read ahead and one that is written.
/// wanted: what buffer_count and buffer_size allow; largest: of the units' shards.
constexpr int64_t param_pool_bytes(int64_t wanted, int64_t largest) {
  constexpr int64_t kUnits = 3;
  return std::max(std::min(wanted, 2 * kUnits * largest), kUnits * (largest + kBufferSlackBytes));
}

/// Pool of optimizer state in files: room for two blocks that are read, one that is updated and one that is written,
/// and for the gradients of two units. largest_block_numel: of any unit's shard, at most a block; bytes_per_element: of
/// master and states together; largest_gradient_bytes: of any unit's shard, 0 when gradients are not in files.
constexpr int64_t state_pool_bytes(int64_t wanted, int64_t largest_block_numel, int64_t bytes_per_element,
                                   int64_t largest_gradient_bytes) {
  constexpr int64_t kBlocks = 4;
  constexpr int64_t kGradients = 2;
  return std::max(wanted, kBlocks * (bytes_per_element * largest_block_numel + kBufferSlackBytes) +
                              kGradients * (largest_gradient_bytes + kBufferSlackBytes));
}

}  // namespace deepscale
