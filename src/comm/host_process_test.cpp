// Ranks as processes: children of the test, joined by a folder rendezvous.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <tuple>

#include "base/error.h"
#include "comm/host_test_support.h"
#include "comm/run_ranks.h"
#include "platform/test_children.h"

namespace deepscale {
namespace {

using host_test::Buffer;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Place = Buffer::Place;

/// One process per rank, each running the child test `name`, which begins with a Rank.
class Processes {
 public:
  Processes(int size, const std::string& name, const std::string& argument = "") {
    const std::string key =
        fmt::format("test {} {}", this_process_id(), steady_clock::now().time_since_epoch().count());
    for (int rank = 0; rank < size; ++rank) {
      children_.push_back(tree_.start(name, {key, std::to_string(rank), std::to_string(size), argument}));
    }
  }
  void kill_rank(int rank) { tree_.kill(children_[static_cast<size_t>(rank)]); }
  /// Waits for all; exit codes by rank.
  std::vector<int> join() {
    std::vector<int> codes;
    for (const ProcessId child : children_) codes.push_back(tree_.wait(child));
    return codes;
  }

 private:
  TestChildren tree_;
  std::vector<ProcessId> children_;
};

/// The exit codes of ranks that all did what they should.
std::vector<int> all_well(int size) {
  return std::vector<int>(static_cast<size_t>(size), 0);
}

/// In a child: one rank of a run. Calls body, whose result becomes the exit code.
using Comm = std::shared_ptr<HostCommunicator>;
[[noreturn]] void run_rank(const std::function<int(const Comm&, const std::string& argument)>& body,
                           const HostOptions& options = test_host_options()) {
  const std::vector<std::string> arguments = child_arguments();
  const int rank = std::stoi(arguments.at(1));
  const int size = std::stoi(arguments.at(2));
  int code = 98;
  try {
    const auto rendezvous = directory_rendezvous(arguments.at(0), rank, size, std::chrono::seconds(60));
    const HostConnection connection = HostCommunicator::connect(rank, size, rendezvous, options);
    if (connection.communicator == nullptr) {
      fprintf(stderr, "rank %d: %s\n", rank, connection.reason.c_str());
    } else {
      code = body(connection.communicator, arguments.at(3));
    }
  } catch (const std::exception& error) {
    fprintf(stderr, "rank %d: %s\n", rank, error.what());
  }
  finish_child(code);
}

HostOptions small_staging(int64_t bytes) {
  HostOptions options = test_host_options();
  options.staging_bytes = bytes;
  return options;
}

TEST(Children, DISABLED_SumsRoundAfterRound) {
  run_rank(
      [](const Comm& comm, const std::string&) {
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
      small_staging(32 << 10));
}

TEST(HostProcesses, CollectivesWorkBetweenProcessesSharedAndForeign) {
  EXPECT_EQ(Processes(3, "SumsRoundAfterRound").join(), all_well(3));
}

/// Replaces what peers are reached by in a rank's introduction: the token of an anonymous segment.
std::string with_hidden_token(std::string text) {
  for (const std::string mark : {"/proc/", "section:"}) {
    const size_t token = text.find(mark);
    if (token != std::string::npos) text.replace(token, mark.size(), "/hidden/");
  }
  return text;
}

TEST(Children, DISABLED_HidesItsFirstToken) {
  const std::vector<std::string> arguments = child_arguments();
  const int rank = std::stoi(arguments.at(1));
  const HostRendezvous inner = directory_rendezvous(arguments.at(0), rank, 2, std::chrono::seconds(60));
  bool first = true;
  const HostRendezvous hiding = [&](const std::string& text) {
    return inner(rank == 1 && std::exchange(first, false) ? with_hidden_token(text) : text);
  };
  const auto connection = HostCommunicator::connect(rank, 2, hiding, test_host_options());
  int32_t value = rank + 1;
  if (connection.communicator == nullptr) finish_child(2);
  connection.communicator->all_reduce(&value, 1, DType::kInt32, ReduceOp::kSum).wait();
  finish_child(value == 3 ? 0 : 1);
}

TEST(HostProcesses, WherePeersCannotBeReachedAtFirstTheyMeetByName) {
  EXPECT_EQ(Processes(2, "HidesItsFirstToken").join(), all_well(2));
  // Linux keeps names of shared memory as files; others forget them with their last user.
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", ignored)) {
    const std::string name = entry.path().filename().string();
    int64_t creator = 0;
    if (sscanf(name.c_str(), "deepscale-%" SCNx64 "-", &creator) != 1 || name.size() < 32) continue;
    EXPECT_TRUE(is_alive({creator, 0})) << name << ": names are removed once the peers have met";
  }
}

TEST(Children, DISABLED_ReadsItsPeersShard) {
  run_rank([](const Comm& comm, const std::string&) {
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
}

TEST(HostProcesses, PeersReadEachOthersMemoryOneSidedly) {
  EXPECT_EQ(Processes(2, "ReadsItsPeersShard").join(), all_well(2));
}

TEST(Children, DISABLED_WritesACommonRegion) {
  run_rank([](const Comm& comm, const std::string&) {
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
}

TEST(HostProcesses, ACommonRegionIsTheSameBytesForAll) {
  EXPECT_EQ(Processes(3, "WritesACommonRegion").join(), all_well(3));
}

/// The argument is "<operation> <victim> <file>". The victim writes the file and waits to be killed; the others are in
/// the operation then, and must end with an error that names the victim.
TEST(Children, DISABLED_WaitsForAVictim) {
  run_rank([](const Comm& comm, const std::string& argument) {
    std::istringstream words(argument);
    std::string operation;
    int victim = 0;
    std::string file;
    words >> operation >> victim >> file;
    comm->barrier("ready").wait();
    if (comm->rank() == victim) {
      std::ofstream(native_path(file).c_str()) << "x";
      for (;;) std::this_thread::sleep_for(std::chrono::seconds(60));
    }
    try {
      std::vector<float> data(1 << 20);
      if (operation == "all_reduce") {
        comm->all_reduce(data.data(), 1 << 20, DType::kFloat32, ReduceOp::kSum, "grads").wait();
      } else if (operation == "recv") {
        comm->recv(data.data(), 1, DType::kFloat32, victim, "activation").wait();
      } else {
        comm->barrier("end").wait();
      }
      return 1;
    } catch (const CommError& error) {
      const bool named = std::string(error.what()).find(fmt::format("rank {} (pid ", victim)) != std::string::npos;
      if (!named) fprintf(stderr, "%s\n", error.what());
      return named ? 0 : 2;
    }
  });
}

void expect_death_is_noticed(const std::string& operation, int victim) {
  // Relative, so that it holds no spaces; children have the same current folder.
  const std::string file = fmt::format("deepscale_test_{}.ready", this_process_id());
  Processes processes(3, "WaitsForAVictim", fmt::format("{} {} {}", operation, victim, file));
  wait_for_file(file);
  std::this_thread::sleep_for(milliseconds(50));
  remove_file(file);
  const auto start = steady_clock::now();
  processes.kill_rank(victim);
  const std::vector<int> codes = processes.join();
  EXPECT_LT(steady_clock::now() - start, test_host_options().timeout / 2);
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(codes[static_cast<size_t>(rank)], rank == victim ? 137 : 0) << rank;
}

TEST(HostProcesses, AKilledPeerIsNamedByThoseWhoWaitForIt) {
  expect_death_is_noticed("all_reduce", 1);
  expect_death_is_noticed("barrier", 0);
  expect_death_is_noticed("recv", 2);
}

TEST(Children, DISABLED_SumsUntilAPeerIsGone) {
  run_rank(
      [](const Comm& comm, const std::string& file) {
        const Buffer shared(*comm, 1 << 20, Place::kShared);
        const Buffer foreign(*comm, 1 << 20, Place::kForeign);
        if (comm->rank() == 0) std::ofstream(native_path(file).c_str()) << "x";
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
      small_staging(16 << 10));
}

TEST(HostProcesses, APeerKilledInTheMiddleOfACollectiveDoesNotHangOrCrashTheOthers) {
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::string file = fmt::format("deepscale_test_{}.started", this_process_id());
    Processes processes(3, "SumsUntilAPeerIsGone", file);
    wait_for_file(file);
    remove_file(file);
    std::this_thread::sleep_for(milliseconds(50 + 23 * attempt));
    const auto start = steady_clock::now();
    processes.kill_rank(attempt % 3);
    const std::vector<int> codes = processes.join();
    EXPECT_LT(steady_clock::now() - start, test_host_options().timeout / 2);
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(codes[static_cast<size_t>(rank)], rank == attempt % 3 ? 137 : 0);
  }
}

TEST(Children, DISABLED_AsksForTooMuch) {
  run_rank([](const Comm& comm, const std::string&) {
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
}

TEST(HostProcesses, MoreMemoryThanThereIsIsAnErrorAndNothingElseBreaks) {
  EXPECT_EQ(Processes(2, "AsksForTooMuch").join(), all_well(2));
}

}  // namespace
}  // namespace deepscale
