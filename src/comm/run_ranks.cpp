#include "comm/run_ranks.h"

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"

namespace deepscale {

void run_rank_threads(int count, const std::function<void(int rank)>& body,
                      const std::function<void(const std::string& cause)>& on_error) {
  std::mutex mutex;
  std::exception_ptr first;
  const auto record = [&](const std::string& cause) {
    const std::lock_guard lock(mutex);
    if (first != nullptr) return;
    first = std::current_exception();
    if (on_error) on_error(cause);
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        record(error.what());
      } catch (...) {
        record("unknown exception");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first != nullptr) std::rethrow_exception(first);
}

HostOptions test_host_options() {
  HostOptions options;
  options.timeout = std::chrono::seconds(60);  // a busy machine may not run a thread for seconds
  options.segment_bytes = int64_t{1} << 30;
  return options;
}

void run_ranks(int count, const std::function<void(const std::shared_ptr<HostCommunicator>&)>& body,
               const HostOptions& options) {
  const ThreadRendezvous rendezvous(count);
  const auto rank_body = [&](int rank) {
    HostConnection connection = HostCommunicator::connect(rank, count, rendezvous.of_rank(rank), options);
    DS_CHECK_AS(CommError, connection.communicator != nullptr, "{}", connection.reason);
    body(connection.communicator);
  };
  run_rank_threads(count, rank_body, [&](const std::string& cause) { rendezvous.fail(cause); });
}

}  // namespace deepscale
