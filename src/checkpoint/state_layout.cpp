#include "checkpoint/state_layout.h"

#include <algorithm>

namespace deepscale {
namespace {

int64_t divide_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

}  // namespace

StateLayout::StateLayout(StateLayoutKind kind, std::vector<int64_t> numels, int ranks)
    : kind_(kind), numels_(std::move(numels)), ranks_(ranks) {
  for (const int64_t numel : numels_) {
    starts_.push_back(total_);
    total_ += kind_ == StateLayoutKind::kPerParameter ? divide_up(numel, ranks_) : numel;
  }
  const int64_t alignment = 2 * static_cast<int64_t>(ranks_);
  partition_numel_ =
      kind_ == StateLayoutKind::kPartitioned ? divide_up(total_, alignment) * alignment / ranks_ : total_;
}

int64_t StateLayout::padding(int rank) const {
  if (kind_ != StateLayoutKind::kPartitioned) return 0;
  return std::clamp<int64_t>((rank + 1) * partition_numel_ - total_, 0, partition_numel_);
}

std::vector<StatePiece> StateLayout::pieces(int position, int64_t offset, int64_t length) const {
  std::vector<StatePiece> found;
  const bool by_parameter = kind_ == StateLayoutKind::kPerParameter;
  const int64_t unit = by_parameter ? divide_up(numels_[position], ranks_) : partition_numel_;
  const int64_t base = by_parameter ? 0 : starts_[position];   // what is cut begins here
  const int64_t shift = by_parameter ? starts_[position] : 0;  // and its pieces are moved by this
  for (int64_t at = base + offset; at < base + offset + length;) {
    const int64_t inside = at % unit;
    const int64_t run = std::min(base + offset + length - at, unit - inside);
    found.push_back({static_cast<int>(at / unit), at - base, shift + inside, run});
    at += run;
  }
  return found;
}

std::vector<std::vector<int>> sub_groups(const std::vector<int64_t>& numels, int ranks, int64_t sub_group_numel) {
  std::vector<std::vector<int>> groups;
  std::vector<int> current;
  int64_t local = 0;
  for (size_t p = 0; p < numels.size(); ++p) {
    current.push_back(static_cast<int>(p));
    local += divide_up(numels[p], ranks);
    if (local < sub_group_numel) continue;
    groups.push_back(std::move(current));
    current.clear();
    local = 0;
  }
  if (!current.empty()) groups.push_back(std::move(current));
  return groups;
}

std::vector<int> round_robin(int count, int ranks) {
  std::vector<int> order;
  for (int slot = 0; slot < ranks; ++slot) {
    for (int k = slot; k < count; k += ranks) order.push_back(k);
  }
  return order;
}

}  // namespace deepscale
