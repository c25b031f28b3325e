// Ranks as processes: forked children of the test, joined by a folder rendezvous.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "comm/host_test_support.h"
#include "comm/run_ranks.h"

namespace deepscale {
namespace {

using host_test::Buffer;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Place = Buffer::Place;

/// One forked process per rank. A body returns what the process is to exit with.
class Processes {
 public:
  using Body = std::function<int(const std::shared_ptr<HostCommunicator>&)>;

  Processes(int size, const Body& body, const HostOptions& options = test_host_options()) {
    const std::string key = fmt::format("test {} {}", getpid(), steady_clock::now().time_since_epoch().count());
    for (int rank = 0; rank < size; ++rank) {
      const pid_t child = fork();
      if (child != 0) {
        children_.push_back(child);
        continue;
      }
      int code = 99;
      try {
        const auto rendezvous = directory_rendezvous(key, rank, size, std::chrono::seconds(60));
        HostConnection connection = HostCommunicator::connect(rank, size, rendezvous, options);
        if (connection.communicator == nullptr) fprintf(stderr, "rank %d: %s\n", rank, connection.reason.c_str());
        code = connection.communicator == nullptr ? 98 : body(connection.communicator);
      } catch (const std::exception& error) {
        fprintf(stderr, "rank %d: %s\n", rank, error.what());
      }
      fflush(stderr);
      _exit(code);
    }
  }
  void kill_rank(int rank) const { kill(children_[static_cast<size_t>(rank)], SIGKILL); }
  /// Waits for all; exit codes by rank, -1 for killed.
  std::vector<int> join() {
    std::vector<int> codes;
    for (const pid_t child : children_) {
      int status = 0;
      waitpid(child, &status, 0);
      codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    }
    children_.clear();
    return codes;
  }
  ~Processes() {
    for (const pid_t child : children_) kill(child, SIGKILL);
    join();
  }

 private:
  std::vector<pid_t> children_;
};

TEST(HostProcesses, CollectivesWorkBetweenProcessesSharedAndForeign) {
  HostOptions options = test_host_options();
  options.staging_bytes = 32 << 10;
  Processes processes(
      3,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        for (int round = 0; round < 30; ++round) {
          for (const int64_t count : {3, 1000, 20011}) {
            const Buffer data(*comm, count * 8, round % 2 == 0 ? Place::kShared : Place::kForeign);
            std::fill_n(data.as<int64_t>(), count, comm->rank() + round);
            comm->all_reduce(data.data(), count, DType::kInt64, ReduceOp::kSum).wait_released();
            for (int64_t i = 0; i < count; ++i) {
              if (data.as<int64_t>()[i] != 3 + 3 * round) return 1;
            }
          }
        }
        return 0;
      },
      options);
  EXPECT_EQ(processes.join(), (std::vector<int>{0, 0, 0}));
}

TEST(HostProcesses, WherePeersCannotBeReachedThroughProcTheyMeetByName) {
  const std::string key = fmt::format("hidden {}", getpid());
  std::vector<pid_t> children;
  for (int rank = 0; rank < 2; ++rank) {
    const pid_t child = fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    const HostRendezvous inner = directory_rendezvous(key, rank, 2, std::chrono::seconds(60));
    const HostRendezvous hiding = [&](std::string text) {
      const size_t token = text.find("/proc/");
      if (rank == 1 && token != std::string::npos) text.replace(token, 6, "/hidden/");
      return inner(text);
    };
    const auto connection = HostCommunicator::connect(rank, 2, hiding, test_host_options());
    int32_t value = rank + 1;
    if (connection.communicator == nullptr) _exit(2);
    connection.communicator->all_reduce(&value, 1, DType::kInt32, ReduceOp::kSum).wait();
    _exit(value == 3 ? 0 : 1);
  }
  for (const pid_t child : children) {
    int status = 1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    for (const pid_t child : children) {
      EXPECT_EQ(entry.path().filename().string().find(fmt::format("deepscale-{:x}-", child)), std::string::npos)
          << "names are removed once the peers have met";
    }
  }
}

TEST(HostProcesses, PeersReadEachOthersMemoryOneSidedly) {
  Processes processes(2, [](const std::shared_ptr<HostCommunicator>& comm) {
    const Buffer shard(*comm, 1 << 20, Place::kShared);
    std::fill_n(shard.as<int32_t>(), 1 << 18, 10 + comm->rank());
    int64_t offsets[2] = {0, 0};
    const int64_t own = comm->offset_of(shard.data());
    comm->all_gather(&own, offsets, 1, DType::kInt64).wait();
    const int peer = 1 - comm->rank();
    const auto* const there = static_cast<const int32_t*>(comm->peer_address(peer, offsets[peer]));
    const bool right = there[0] == 10 + peer && there[(1 << 18) - 1] == 10 + peer;
    comm->barrier().wait();
    return right ? 0 : 1;
  });
  EXPECT_EQ(processes.join(), (std::vector<int>{0, 0}));
}

TEST(HostProcesses, ACommonRegionIsTheSameBytesForAll) {
  Processes processes(3, [](const std::shared_ptr<HostCommunicator>& comm) {
    for (int round = 0; round < 5; ++round) {
      const auto region = comm->allocate_common(100000);
      auto* const values = static_cast<int32_t*>(region.get());
      if (values[0] != 0 || values[24999] != 0) return 1;
      comm->barrier().wait();
      values[comm->rank() * 1000] = comm->rank() + 1;
      comm->barrier().wait();
      for (int rank = 0; rank < 3; ++rank) {
        if (values[rank * 1000] != rank + 1) return 2;
      }
      if (!comm->is_shared(values, 100000)) return 3;
    }
    return 0;
  });
  EXPECT_EQ(processes.join(), (std::vector<int>{0, 0, 0}));
}

/// Rank `victim` of three is killed while the others are in `operation`; they must end with an error that names it.
void expect_death_is_noticed(const std::function<void(HostCommunicator&)>& operation, int victim) {
  const std::filesystem::path report =
      std::filesystem::temp_directory_path() / fmt::format("deepscale_test_{}", getpid());
  Processes processes(3, [&](const std::shared_ptr<HostCommunicator>& comm) {
    comm->barrier("ready").wait();
    if (comm->rank() == victim) {
      std::ofstream(report.string() + ".ready") << "x";
      for (;;) pause();
    }
    try {
      operation(*comm);
      return 1;
    } catch (const CommError& error) {
      const bool named = std::string(error.what()).find(fmt::format("rank {} (pid ", victim)) != std::string::npos;
      if (!named) fprintf(stderr, "%s\n", error.what());
      return named ? 0 : 2;
    }
  });
  while (!std::filesystem::exists(report.string() + ".ready")) std::this_thread::sleep_for(milliseconds(5));
  std::this_thread::sleep_for(milliseconds(50));
  std::filesystem::remove(report.string() + ".ready");
  const auto start = steady_clock::now();
  processes.kill_rank(victim);
  std::vector<int> codes = processes.join();
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(5));
  codes.erase(codes.begin() + victim);
  EXPECT_EQ(codes, (std::vector<int>{0, 0}));
}

TEST(HostProcesses, AKilledPeerIsNamedByThoseWhoWaitForIt) {
  expect_death_is_noticed(
      [](HostCommunicator& comm) {
        std::vector<float> data(1 << 20);
        comm.all_reduce(data.data(), 1 << 20, DType::kFloat32, ReduceOp::kSum, "grads").wait();
      },
      1);
  expect_death_is_noticed([](HostCommunicator& comm) { comm.barrier("end").wait(); }, 0);
  expect_death_is_noticed(
      [](HostCommunicator& comm) {
        float value = 0;
        comm.recv(&value, 1, DType::kFloat32, 2, "activation").wait();
      },
      2);
}

TEST(HostProcesses, APeerKilledInTheMiddleOfACollectiveDoesNotHangOrCrashTheOthers) {
  for (int attempt = 0; attempt < 8; ++attempt) {
    HostOptions options = test_host_options();
    options.staging_bytes = 16 << 10;
    Processes processes(
        3,
        [](const std::shared_ptr<HostCommunicator>& comm) {
          const Buffer shared(*comm, 1 << 20, Place::kShared);
          const Buffer foreign(*comm, 1 << 20, Place::kForeign);
          try {
            for (;;) {
              for (const Buffer* buffer : {&shared, &foreign}) {
                comm->all_reduce(buffer->data(), 1 << 18, DType::kInt32, ReduceOp::kSum, "x").wait();
                comm->reduce_scatter(buffer->data(), buffer->data() + comm->rank() * 4096, 1024, DType::kInt32,
                                     ReduceOp::kSum, "y")
                    .wait_released();
              }
            }
          } catch (const CommError&) {
            return 0;
          }
        },
        options);
    std::this_thread::sleep_for(milliseconds(150 + 23 * attempt));
    const auto start = steady_clock::now();
    processes.kill_rank(attempt % 3);
    std::vector<int> codes = processes.join();
    EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(5));
    codes.erase(codes.begin() + attempt % 3);
    EXPECT_EQ(codes, (std::vector<int>{0, 0}));
  }
}

TEST(HostProcesses, MoreMemoryThanThereIsIsAnErrorAndNothingElseBreaks) {
  Processes processes(2, [](const std::shared_ptr<HostCommunicator>& comm) {
    if (comm->rank() == 0) {
      try {
        std::ignore = comm->memory()->allocate(int64_t{1} << 40);
        return 1;
      } catch (const IoError&) {
      }
    }
    comm->barrier().wait();
    const Buffer data(*comm, 1 << 16, Place::kShared);
    comm->all_reduce(data.data(), 1 << 14, DType::kFloat32, ReduceOp::kSum).wait_released();
    return 0;
  });
  EXPECT_EQ(processes.join(), (std::vector<int>{0, 0}));
}

}  // namespace
}  // namespace deepscale
