#include "zero/shard_layout.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

ShardLayout::ShardLayout(std::vector<int64_t> numels, int shards) : numels_(std::move(numels)), shards_(shards) {
  DS_CHECK(shards >= 1, "a shard layout needs at least one shard, got {}", shards);
  const int64_t quantum = shards == 1 ? kAlignment : kernels::kNormBlock;
  int64_t sum = 0;
  for (const int64_t numel : numels_) sum += round_up(numel, kAlignment);
  int64_t candidate = round_up((sum + shards - 1) / shards, quantum);
  while (!place(candidate)) candidate += quantum;
}

bool ShardLayout::place(int64_t shard_numel) {
  shard_numel_ = shard_numel;
  offsets_.clear();
  int64_t position = 0;
  for (const int64_t numel : numels_) {
    position = round_up(position, kAlignment);
    if (shards_ > 1 && numel > 0) {
      const int64_t boundary = (position / shard_numel + 1) * shard_numel;
      if (position + numel > boundary) position += (boundary - position) % kernels::kNormBlock;
    }
    offsets_.push_back(position);
    position += numel;
  }
  return position <= shard_numel * shards_;
}

int64_t ShardLayout::payload_numel() const {
  return std::accumulate(numels_.begin(), numels_.end(), int64_t{0});
}

std::vector<ShardLayout::Piece> ShardLayout::pieces(int shard) const {
  std::vector<Piece> result;
  const int64_t begin = shard * shard_numel_;
  const int64_t end = begin + shard_numel_;
  for (int i = 0; i < tensors(); ++i) {
    const int64_t first = std::max(begin, offsets_[i]);
    const int64_t last = std::min(end, offsets_[i] + numels_[i]);
    if (first < last) result.push_back({i, first - offsets_[i], last - first, first - begin});
  }
  return result;
}

}  // namespace deepscale
