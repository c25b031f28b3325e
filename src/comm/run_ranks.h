// Ranks as threads of one process: for tests, and for programs that shard over the cores of one machine.
#pragma once

#include <functional>
#include <memory>

#include "comm/host_communicator.h"

namespace deepscale {

/// Runs body(rank) for rank 0..count-1, each on its own thread, and returns when all have ended. Rethrows the error
/// that was thrown first; on_error, if any, is called once, at that moment, from the thread that threw.
void run_rank_threads(int count, const std::function<void(int rank)>& body,
                      const std::function<void(const std::string& cause)>& on_error = {});

/// Options for tests: small segments, short timeout (10 s).
HostOptions test_host_options();

/// run_rank_threads with a HostCommunicator among the threads. A rank that throws leaves the group, so that the others'
/// waits end with an error instead of hanging.
void run_ranks(int count, const std::function<void(const std::shared_ptr<HostCommunicator>&)>& body,
               const HostOptions& options = test_host_options());

}  // namespace deepscale
