// A line on the terminal that says how far a command is. Nothing is written where errors do not go to a terminal.
#pragma once

#include <fmt/core.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <string>

#include "platform/machine.h"

namespace deepscale {

/// Threads: add() from any.
class CkptProgress {
 public:
  CkptProgress(std::string what, int64_t total_bytes)
      : what_(std::move(what)), total_(total_bytes), shows_(error_output_is_terminal()) {}
  CkptProgress(const CkptProgress&) = delete;
  CkptProgress& operator=(const CkptProgress&) = delete;
  ~CkptProgress() {
    if (shows_ && shown_) fmt::print(stderr, "\r{:78}\r", "");
  }

  void add(int64_t bytes) {
    done_ += bytes;
    if (!shows_) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    const auto now = Clock::now();
    if (!lock.owns_lock() || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    shown_ = true;
    show(std::chrono::duration<double>(now - begin_).count());
  }
  [[nodiscard]] int64_t done() const { return done_; }
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

 private:
  using Clock = std::chrono::steady_clock;

  void show(double seconds) const {
    constexpr double kGb = 1e9;
    constexpr int kWidth = 30;
    const double part = total_ > 0 ? std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_)) : 0.0;
    const int filled = static_cast<int>(part * kWidth);
    fmt::print(stderr, "\r{} [{}{}] {:3.0f} % {:6.1f} of {:.1f} GB {:5.2f} GB/s", what_, std::string(filled, '#'),
               std::string(kWidth - filled, '.'), 100 * part, static_cast<double>(done_) / kGb,
               static_cast<double>(total_) / kGb, static_cast<double>(done_) / kGb / std::max(seconds, 1e-3));
    std::fflush(stderr);
  }

  std::string what_;
  int64_t total_;
  bool shows_;
  bool shown_ = false;
  std::atomic<int64_t> done_ = 0;
  std::mutex mutex_;
  Clock::time_point begin_ = Clock::now(), last_ = begin_;
};

}  // namespace deepscale
