// Where the elements of parameters stand in the flat tensors of optimizer-state files. Pure arithmetic, torch-free.
//
// partitioned:    the parameters of a group stand end to end, the total is padded to a multiple of 2 * ranks, and each
//                 rank stores one of `ranks` equal partitions;
// per parameter:  every parameter is cut into `ranks` equal pieces of ceil(numel / ranks) elements, and a rank stores
//                 its pieces end to end.
#pragma once

#include <cstdint>
#include <vector>

namespace deepscale {

enum class StateLayoutKind { kPartitioned, kPerParameter, kUnpadded /* one rank, nothing padded */ };

/// `length` elements from `offset` of a flattened parameter stand at `start` of rank `rank`'s flat tensor.
struct StatePiece {
  int rank = 0;
  int64_t offset = 0;
  int64_t start = 0;
  int64_t length = 0;
};

class StateLayout {
 public:
  /// Requires numels >= 0, ranks >= 1 (exactly 1 when unpadded).
  StateLayout(StateLayoutKind kind, std::vector<int64_t> numels, int ranks);

  /// Elements of each rank's flat tensor, padding included.
  [[nodiscard]] int64_t partition_numel() const { return partition_numel_; }
  /// Elements at the end of a rank's flat tensor that no parameter fills and that files leave out (partitioned only).
  [[nodiscard]] int64_t padding(int rank) const;
  /// Where elements [offset, offset + length) of the parameter at `position` stand.
  [[nodiscard]] std::vector<StatePiece> pieces(int position, int64_t offset, int64_t length) const;
  [[nodiscard]] std::vector<StatePiece> pieces(int position) const { return pieces(position, 0, numels_[position]); }

 private:
  StateLayoutKind kind_;
  std::vector<int64_t> numels_;
  int ranks_;
  std::vector<int64_t> starts_;  ///< in the group, or in a rank's flat tensor
  int64_t total_ = 0;
  int64_t partition_numel_ = 0;
};

/// Cuts a group into consecutive sub-groups whose pieces on one rank reach `sub_group_numel` elements: positions.
std::vector<std::vector<int>> sub_groups(const std::vector<int64_t>& numels, int ranks, int64_t sub_group_numel);
/// Parameter k goes to slot k mod ranks; slots end to end: positions.
std::vector<int> round_robin(int count, int ranks);

}  // namespace deepscale
