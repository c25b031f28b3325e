#include "memory/residency.h"

#include <algorithm>
#include <utility>

namespace deepscale {
namespace {

/// 0, n/2, n/4, 3n/4, n/8, ...: every prefix is spread evenly (bits of the position reversed; van der Corput 1935).
std::vector<int> spread_order(int count) {
  int bits = 0;
  while ((1 << bits) < count) ++bits;
  std::vector<int> order;
  for (int i = 0; i < 1 << bits; ++i) {
    int reversed = 0;
    for (int bit = 0; bit < bits; ++bit) reversed |= ((i >> bit) & 1) << (bits - 1 - bit);
    if (reversed < count) order.push_back(reversed);
  }
  return order;
}

}  // namespace

Residency::Residency(std::vector<int64_t> bytes) : bytes_(std::move(bytes)), resident_(bytes_.size()) {
  for (const int part : spread_order(static_cast<int>(bytes_.size()))) {
    if (bytes_[part] > 0) order_.push_back(part);
  }
}

void Residency::adapt(int64_t available, int64_t reserve) {
  while (taken_ > 0 && available < reserve / 2) {
    const int part = order_[--taken_];
    resident_[part] = false;
    resident_bytes_ -= bytes_[part];
    available += bytes_[part];
  }
  while (taken_ < order_.size() && available - bytes_[order_[taken_]] >= reserve) {
    const int part = order_[taken_++];
    resident_[part] = true;
    resident_bytes_ += bytes_[part];
    available -= bytes_[part];
  }
}

}  // namespace deepscale
