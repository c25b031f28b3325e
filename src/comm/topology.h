// Which ranks form which groups. Pure arithmetic over rank numbers; communicators are made from the results.
//
// A world is cut into shards of consecutive ranks (MiCS: arXiv:2205.00119 section 3.1; HSDP; hpZ's node groups: ZeRO++,
// arXiv:2306.10209 section 4.2): ranks of one shard hold the pieces of one copy of the model, ranks that stand at the
// same place of their shards hold the same piece ("replicas").
#pragma once

#include <string_view>
#include <vector>

namespace deepscale {

class ShardTopology {
 public:
  /// Throws ConfigError when shard_size does not divide world_size; `key` is the setting that asked for it.
  ShardTopology(int world_size, int shard_size, std::string_view key = "zero_optimization.mics_shard_size");

  [[nodiscard]] int world_size() const { return world_size_; }
  [[nodiscard]] int shard_size() const { return shard_size_; }
  [[nodiscard]] int shard_count() const { return world_size_ / shard_size_; }

  /// Ascending ranks of the shard that `rank` belongs to: consecutive.
  [[nodiscard]] std::vector<int> shard_of(int rank) const;
  /// Ascending ranks that hold the same piece as `rank`: every shard_size-th.
  [[nodiscard]] std::vector<int> replicas_of(int rank) const;
  /// All shards, then all replica groups: together with their order, what every rank must agree on to create groups.
  [[nodiscard]] std::vector<std::vector<int>> all_shards() const;
  [[nodiscard]] std::vector<std::vector<int>> all_replicas() const;

  friend bool operator==(const ShardTopology&, const ShardTopology&) = default;

 private:
  int world_size_;
  int shard_size_;
};

}  // namespace deepscale
