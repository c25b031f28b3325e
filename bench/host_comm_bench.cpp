// Speed of the host communicator: all_reduce, reduce_scatter and all_gather between forked processes, with buffers
// inside and outside shared memory, beside a plain copy of the same bytes that all ranks make at once.
//   host_comm_bench [--ranks 2] [--min 64] [--max 268435456] [--seconds 0.3] [--staging BYTES] [--op NAME]
// Bytes are those of the full data (all_reduce: the buffer; reduce_scatter: the input; all_gather: the output), fp32.
// Times are of rank 0, per operation, each begun by all ranks at once: best and median, in microseconds.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/host_communicator.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  int ranks = 2;
  int64_t min_bytes = 64;
  int64_t max_bytes = 256 << 20;
  double seconds = 0.3;
  int64_t staging_bytes = 0;
  std::string op;
};

Settings parse(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const char* const value = argv[i + 1];
    if (name == "--ranks") settings.ranks = std::atoi(value);
    if (name == "--min") settings.min_bytes = std::atoll(value);
    if (name == "--max") settings.max_bytes = std::atoll(value);
    if (name == "--seconds") settings.seconds = std::atof(value);
    if (name == "--staging") settings.staging_bytes = std::atoll(value);
    if (name == "--op") settings.op = value;
  }
  return settings;
}

struct Times {
  double best_us = 0;
  double median_us = 0;
};

/// Runs `work` again and again, in step with the peers; rank 0's clock decides when to stop.
Times measure(HostCommunicator& comm, double seconds, const std::function<void()>& work) {
  std::vector<double> samples;
  for (int i = 0; i < 3; ++i) work();
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (int32_t go_on = 1; go_on != 0;) {
    for (int i = 0; i < 5; ++i) {
      comm.barrier().wait();
      const auto start = Clock::now();
      work();
      samples.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    go_on = Clock::now() < end ? 1 : 0;
    comm.broadcast(&go_on, 1, DType::kInt32, 0).wait();
  }
  std::sort(samples.begin(), samples.end());
  return {samples.front(), samples[samples.size() / 2]};
}

struct Buffers {
  Buffers(HostCommunicator& comm, int64_t bytes, bool shared) {
    for (auto& pointer : pointers) {
      if (shared) {
        kept.push_back(comm.memory()->allocate(bytes));
      } else {
        kept.emplace_back(std::aligned_alloc(4096, static_cast<size_t>((bytes + 4095) / 4096 * 4096)), std::free);
      }
      pointer = static_cast<char*>(kept.back().get());
      std::memset(pointer, 0, static_cast<size_t>(bytes));
    }
  }
  char* pointers[2];
  std::vector<std::shared_ptr<void>> kept;
};

Times run_operation(HostCommunicator& comm, const std::string& name, int64_t bytes, bool shared, double seconds) {
  const Buffers buffers(comm, bytes, shared);
  char* const full = buffers.pointers[0];
  char* const other = buffers.pointers[1];
  const int64_t slice = bytes / comm.size() / 4;
  if (name == "copy") {
    return measure(comm, seconds, [&] { std::memcpy(other, full, static_cast<size_t>(bytes)); });
  }
  if (name == "all_reduce") {
    return measure(comm, seconds,
                   [&] { comm.all_reduce(full, bytes / 4, DType::kFloat32, ReduceOp::kSum).wait_released(); });
  }
  if (name == "reduce_scatter") {
    return measure(comm, seconds,
                   [&] { comm.reduce_scatter(full, other, slice, DType::kFloat32, ReduceOp::kSum).wait_released(); });
  }
  return measure(comm, seconds, [&] { comm.all_gather(other, full, slice, DType::kFloat32).wait_released(); });
}

int run_rank(HostCommunicator& comm, const Settings& settings) {
  if (comm.rank() == 0) {
    std::printf("%-15s %8s %12s %10s %10s %10s %10s %10s\n", "operation", "ranks", "bytes", "copy", "shared",
                "(median)", "foreign", "(median)");
  }
  for (const std::string name : {"all_reduce", "reduce_scatter", "all_gather"}) {
    if (!settings.op.empty() && settings.op != name) continue;
    for (int64_t bytes = settings.min_bytes; bytes <= settings.max_bytes; bytes *= 4) {
      const Times copy = run_operation(comm, "copy", bytes, false, settings.seconds / 2);
      const Times shared = run_operation(comm, name, bytes, true, settings.seconds);
      const Times foreign = run_operation(comm, name, bytes, false, settings.seconds);
      if (comm.rank() != 0) continue;
      std::printf("%-15s %8d %12ld %10.1f %10.1f %10.1f %10.1f %10.1f\n", name.c_str(), comm.size(),
                  static_cast<long>(bytes), copy.best_us, shared.best_us, shared.median_us, foreign.best_us,
                  foreign.median_us);
      std::fflush(stdout);
    }
  }
  return 0;
}

int run(int argc, char** argv) {
  const Settings settings = parse(argc, argv);
  const std::string key = fmt::format("host_comm_bench {}", getpid());
  std::vector<pid_t> children;
  for (int rank = 1; rank < settings.ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      children.clear();
      HostOptions options;
      options.staging_bytes = settings.staging_bytes;
      const auto connection =
          HostCommunicator::connect(rank, settings.ranks, directory_rendezvous(key, rank, settings.ranks), options);
      return run_rank(*connection.communicator, settings);
    }
    children.push_back(child);
  }
  HostOptions options;
  options.staging_bytes = settings.staging_bytes;
  const auto connection =
      HostCommunicator::connect(0, settings.ranks, directory_rendezvous(key, 0, settings.ranks), options);
  const int code = run_rank(*connection.communicator, settings);
  for (const pid_t child : children) waitpid(child, nullptr, 0);
  return code;
}

}  // namespace
}  // namespace deepscale

int main(int argc, char** argv) {
  try {
    return deepscale::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "host_comm_bench: %s\n", error.what());
    return 1;
  }
}
