// Which element of which tensor is on which rank: pure arithmetic over one unit's flat buffer.
//
// The tensors of a unit stand one after the other in a flat buffer of `shards * shard_numel` elements:
//  - every tensor starts at a multiple of kAlignment elements (64 bytes in a 16-bit dtype, 128 in fp32), because matrix
//    libraries may round differently by alignment;
//  - shard r is [r * shard_numel, (r+1) * shard_numel), equal on all ranks, as collectives want it;
//  - where a shard boundary cuts a tensor, it does so at a multiple of kernels::kNormBlock counted from the tensor's
//    start, so that the partial sums of squares of a tensor are the same however many ranks share it.
// Gaps and the tail are padding: finite values that nothing reads. A unit of one shard has almost none.
#pragma once

#include <cstdint>
#include <vector>

namespace deepscale {

class ShardLayout {
 public:
  static constexpr int64_t kAlignment = 32;

  /// A run of consecutive elements of one tensor on one shard.
  struct Piece {
    int tensor = 0;
    int64_t tensor_offset = 0;  ///< first element, counted in the flattened tensor (a multiple of kNormBlock)
    int64_t length = 0;
    int64_t shard_offset = 0;  ///< the same element, counted in the shard
  };

  ShardLayout() = default;
  /// `numels`: element counts, zero allowed. Requires shards >= 1.
  ShardLayout(std::vector<int64_t> numels, int shards);

  [[nodiscard]] int tensors() const { return static_cast<int>(numels_.size()); }
  [[nodiscard]] int shards() const { return shards_; }
  [[nodiscard]] int64_t numel(int tensor) const { return numels_[tensor]; }
  [[nodiscard]] int64_t offset(int tensor) const { return offsets_[tensor]; }
  [[nodiscard]] int64_t shard_numel() const { return shard_numel_; }
  [[nodiscard]] int64_t total_numel() const { return shard_numel_ * shards_; }
  /// Elements of the tensors themselves, without padding.
  [[nodiscard]] int64_t payload_numel() const;

  /// The pieces of shard `shard`, in order; tensors without an element there are missing.
  [[nodiscard]] std::vector<Piece> pieces(int shard) const;

 private:
  bool place(int64_t shard_numel);

  std::vector<int64_t> numels_;
  std::vector<int64_t> offsets_;
  int shards_ = 1;
  int64_t shard_numel_ = 0;
};

}  // namespace deepscale
