#include "checkpoint/tensor_windows.h"

#include <algorithm>

namespace deepscale {

TensorWindows::TensorWindows(TensorSource& source, std::vector<SourceRange> ranges, int64_t window_numel)
    : source_(source), ranges_(std::move(ranges)), window_numel_(window_numel) {
  start();
}

TensorWindows::~TensorWindows() {
  if (load_.valid()) load_.wait();
}

void TensorWindows::start() {
  load_ = std::async(std::launch::async, [this, window = &windows_[loading_]] { load(*window); });
}

void TensorWindows::load(Window& window) {
  window.pieces.clear();
  int64_t bytes = 0;
  std::vector<SourceRange> reads;
  for (int64_t left = window_numel_; left > 0 && range_ < ranges_.size();) {
    const SourceRange& range = ranges_[range_];
    const int64_t part = std::min(left, range.numel - inside_);
    if (part > 0) {
      const int64_t element = size_of(source_.tensors()[range.tensor].dtype);
      bytes = (bytes + element - 1) / element * element;
      reads.push_back({range.tensor, range.offset + inside_, part, nullptr});
      window.pieces.push_back({range.tensor, range.offset + inside_, part, nullptr});
      bytes += part * element;
    }
    left -= part;
    inside_ += part;
    if (inside_ == range.numel) {
      ++range_;
      inside_ = 0;
    }
  }
  if (static_cast<int64_t>(window.memory.size()) < bytes) window.memory.resize(static_cast<size_t>(bytes));
  int64_t begin = 0;
  for (size_t i = 0; i < reads.size(); ++i) {
    const int64_t element = size_of(source_.tensors()[reads[i].tensor].dtype);
    begin = (begin + element - 1) / element * element;
    reads[i].destination = window.memory.data() + begin;
    window.pieces[i].data = window.memory.data() + begin;
    begin += reads[i].numel * element;
  }
  if (!reads.empty()) source_.read(reads);
}

const std::vector<TensorPiece>& TensorWindows::next() {
  static const std::vector<TensorPiece> kEnd;
  if (!load_.valid()) return kEnd;
  load_.get();
  const Window& ready = windows_[loading_];
  if (ready.pieces.empty()) return kEnd;
  loading_ = 1 - loading_;
  start();
  return ready.pieces;
}

}  // namespace deepscale
