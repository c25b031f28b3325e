// Waiting on a condition variable where programs run with the C++ library of GCC 11. Its wait() without a time limit is
// a function of the C++ library that only GCC 12 has in the form that newer compilers call; the one with a limit is
// inline.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace deepscale {

/// std::condition_variable::wait(lock, condition).
template <typename Condition>
void wait_until_true(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Condition condition) {
  while (!changed.wait_for(lock, std::chrono::hours(1), condition)) {
  }
}

}  // namespace deepscale
