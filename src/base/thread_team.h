// One piece of work by several threads at once, for work that waits for disks and moves memory. Torch-free.
#pragma once

#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace deepscale {

/// Calls work(0), ..., work(threads - 1), each in a thread, the first in the caller's; those for which the system has
/// no thread left follow in the caller's. Returns when all have ended; throws what the first of them threw.
template <typename Work>
void run_team(int64_t threads, const Work& work) {
  std::vector<std::exception_ptr> errors(threads);
  const auto guarded = [&](int64_t thread) {
    try {
      work(thread);
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> team;
  team.reserve(threads);
  try {
    for (int64_t thread = 1; thread < threads; ++thread) team.emplace_back(guarded, thread);
  } catch (const std::system_error&) {
    // Those that were started must not be left alone.
  }
  guarded(0);
  for (int64_t thread = static_cast<int64_t>(team.size()) + 1; thread < threads; ++thread) guarded(thread);
  for (std::thread& thread : team) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace deepscale
