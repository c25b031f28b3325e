// Reads many tensors of a checkpoint one after the other with little memory: windows of some 8 million elements, the
// next one while the caller works on this one. Torch-free.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <vector>

#include "checkpoint/tensor_source.h"

namespace deepscale {

/// Elements that are read at once; 32 MiB of fp32.
inline constexpr int64_t kWindowNumel = int64_t{8} << 20;

/// A part of a tensor in memory.
struct TensorPiece {
  int tensor = 0;
  int64_t offset = 0;
  int64_t numel = 0;
  const char* data = nullptr;  ///< in the tensor's dtype
};

/// Threads: one. The source is read by a thread of this object; nobody else may use it meanwhile.
class TensorWindows {
 public:
  /// ranges: what is read, in this order; destinations are ignored. Two objects with ranges of the same lengths give
  /// pieces of the same lengths.
  TensorWindows(TensorSource& source, std::vector<SourceRange> ranges, int64_t window_numel = kWindowNumel);
  TensorWindows(const TensorWindows&) = delete;
  TensorWindows& operator=(const TensorWindows&) = delete;
  ~TensorWindows();

  /// The next pieces, valid until the next call; empty at the end. Throws what reading throws.
  const std::vector<TensorPiece>& next();

 private:
  struct Window {
    std::vector<char> memory;
    std::vector<TensorPiece> pieces;
  };
  void start();
  void load(Window& window);

  TensorSource& source_;
  std::vector<SourceRange> ranges_;
  int64_t window_numel_;
  size_t range_ = 0;    // the next one to be read
  int64_t inside_ = 0;  // elements of it that were read
  Window windows_[2];
  int loading_ = 0;
  std::future<void> load_;
};

}  // namespace deepscale
