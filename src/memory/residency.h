// Which of several parts that live in a file stay in memory, as far as memory goes. Decides only; moves nothing.
//
// Parts are read in a cycle (the layers of a model, once per token). Whatever stays saves its bytes in every pass, so
// only the sum counts; but parts that stay are spread evenly over the cycle, so that the drive is never idle for long
// while several resident parts are worked on. The sets are nested: a larger budget only adds parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace deepscale {

class Residency {
 public:
  /// bytes[p] of part p, in the order of use; a part of 0 bytes never becomes resident.
  explicit Residency(std::vector<int64_t> bytes);

  /// Called between passes. `available`: bytes that could be taken now beside what is resident; `reserve`: bytes that
  /// are to be left. Adds parts while more than the reserve is left, and gives parts up while less than half of it is
  /// (between the two nothing changes, so that noise does not move parts to and fro).
  void adapt(int64_t available, int64_t reserve);

  [[nodiscard]] bool resident(int part) const { return resident_[part]; }
  [[nodiscard]] int64_t resident_bytes() const { return resident_bytes_; }

 private:
  std::vector<int64_t> bytes_;
  std::vector<int> order_;  ///< in which parts become resident
  size_t taken_ = 0;        ///< of order_
  std::vector<bool> resident_;
  int64_t resident_bytes_ = 0;
};

}  // namespace deepscale
