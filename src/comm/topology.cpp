#include "comm/topology.h"

#include "base/error.h"

namespace deepscale {

ShardTopology::ShardTopology(int world_size, int shard_size, std::string_view key)
    : world_size_(world_size), shard_size_(shard_size) {
  DS_CHECK_AS(ConfigError, world_size >= 1, "a topology needs at least one rank, got {}", world_size);
  DS_CHECK_AS(ConfigError, shard_size >= 1 && shard_size <= world_size,
              "{} must lie in 1..{} (the number of ranks), got {}", key, world_size, shard_size);
  DS_CHECK_AS(ConfigError, world_size % shard_size == 0,
              "{}: {} does not divide the {} ranks; shards are consecutive ranks of equal number", key, shard_size,
              world_size);
}

std::vector<int> ShardTopology::shard_of(int rank) const {
  std::vector<int> ranks;
  const int first = rank / shard_size_ * shard_size_;
  for (int i = 0; i < shard_size_; ++i) ranks.push_back(first + i);
  return ranks;
}

std::vector<int> ShardTopology::replicas_of(int rank) const {
  std::vector<int> ranks;
  for (int other = rank % shard_size_; other < world_size_; other += shard_size_) ranks.push_back(other);
  return ranks;
}

std::vector<std::vector<int>> ShardTopology::all_shards() const {
  std::vector<std::vector<int>> shards;
  for (int first = 0; first < world_size_; first += shard_size_) shards.push_back(shard_of(first));
  return shards;
}

std::vector<std::vector<int>> ShardTopology::all_replicas() const {
  std::vector<std::vector<int>> groups;
  for (int place = 0; place < shard_size_; ++place) groups.push_back(replicas_of(place));
  return groups;
}

}  // namespace deepscale
