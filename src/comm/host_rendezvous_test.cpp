#include "comm/host_rendezvous.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "comm/run_ranks.h"
#include "platform/resources.h"
#include "platform/test_children.h"

namespace deepscale {
namespace {

std::string unique_key(const char* name) {
  return fmt::format("{} {}", name, this_process_id());
}

/// Rendezvous folders with something that this process has written.
int folders_of(int64_t pid) {
  int count = 0;
  std::error_code ignored;  // other programs' folders come and go
  for (const auto& entry : std::filesystem::directory_iterator(runtime_folder(), ignored)) {
    if (!entry.path().filename().string().starts_with("deepscale-")) continue;
    for (const auto& part : std::filesystem::directory_iterator(entry.path(), ignored)) {
      int64_t writer = 0;
      std::ifstream(part.path()) >> writer;
      if (writer != pid) continue;
      ++count;
      break;
    }
  }
  return count;
}

TEST(ThreadRendezvous, GivesEveryPartToEverybodyRoundAfterRound) {
  const ThreadRendezvous rendezvous(5);
  run_rank_threads(5, [&](int rank) {
    const HostRendezvous exchange = rendezvous.of_rank(rank);
    for (int round = 0; round < 200; ++round) {
      const auto parts = exchange(fmt::format("{} {}", rank, round));
      ASSERT_EQ(parts.size(), 5u);
      for (int peer = 0; peer < 5; ++peer) {
        ASSERT_EQ(parts[static_cast<size_t>(peer)], fmt::format("{} {}", peer, round));
      }
    }
  });
}

TEST(ThreadRendezvous, AFailureEndsTheWaitOfTheOthers) {
  const ThreadRendezvous rendezvous(2);
  std::thread other([&] { rendezvous.fail("no memory"); });
  try {
    rendezvous.of_rank(0)("x");
    FAIL();
  } catch (const CommError& error) {
    EXPECT_NE(std::string(error.what()).find("no memory"), std::string::npos);
  }
  other.join();
  EXPECT_THROW(rendezvous.of_rank(1)("y"), CommError);
}

TEST(DirectoryRendezvous, CarriesAnyBytesAndLeavesNothingBehind) {
  const std::string key = unique_key("bytes");
  const std::string odd("a\0b\nc", 5);
  run_rank_threads(3, [&](int rank) {
    const HostRendezvous exchange = directory_rendezvous(key, rank, 3);
    for (int round = 0; round < 5; ++round) {
      const auto parts = exchange(odd + std::to_string(rank * round));
      for (int peer = 0; peer < 3; ++peer)
        ASSERT_EQ(parts[static_cast<size_t>(peer)], odd + std::to_string(peer * round));
    }
  });
  EXPECT_EQ(folders_of(this_process_id()), 0);
  // The folder has gone, so the same key starts anew.
  run_rank_threads(2, [&](int rank) { EXPECT_EQ(directory_rendezvous(key, rank, 2)("z").size(), 2u); });
}

TEST(Children, DISABLED_LeavesTwoRendezvousBehind) {
  // Two runs in which the peer never came, ended without destructors.
  std::vector<HostRendezvous> kept;
  for (const std::string& key : child_arguments()) {
    kept.push_back(directory_rendezvous(key, 1, 2, std::chrono::milliseconds(20)));
    EXPECT_THROW(kept.back()("stale"), CommError);
  }
  finish_child(0);
}

TEST(DirectoryRendezvous, WhatAKilledRunLeftIsIgnoredAndRemoved) {
  const std::string key = unique_key("killed");
  const std::string other_key = unique_key("killed too");
  TestChildren children;
  const ProcessId child = children.start("LeavesTwoRendezvousBehind", {key, other_key});
  ASSERT_EQ(children.wait(child), 0);
  ASSERT_EQ(folders_of(child), 2);
  run_rank_threads(2, [&](int rank) {
    const auto parts = directory_rendezvous(key, rank, 2)(fmt::format("fresh {}", rank));
    EXPECT_EQ(parts[0], "fresh 0");
    EXPECT_EQ(parts[1], "fresh 1");
  });
  EXPECT_EQ(folders_of(child), 0);
}

TEST(DirectoryRendezvous, APeerThatDoesNotComeIsNamed) {
  const HostRendezvous exchange = directory_rendezvous(unique_key("alone"), 0, 2, std::chrono::milliseconds(50));
  try {
    exchange("x");
    FAIL();
  } catch (const CommError& error) {
    EXPECT_NE(std::string(error.what()).find("rank 1 did not come"), std::string::npos) << error.what();
  }
}

TEST(RunRanks, ConnectsOverAFolderToo) {
  const std::string key = unique_key("connect");
  run_rank_threads(2, [&](int rank) {
    const HostConnection connection =
        HostCommunicator::connect(rank, 2, directory_rendezvous(key, rank, 2), test_host_options());
    ASSERT_NE(connection.communicator, nullptr) << connection.reason;
    int32_t value = rank + 1;
    connection.communicator->all_reduce(&value, 1, DType::kInt32, ReduceOp::kProduct).wait();
    EXPECT_EQ(value, 2);
  });
}

TEST(RunRanks, AWorldOfOneNeedsNobody) {
  const HostConnection connection = HostCommunicator::connect(0, 1, nullptr, test_host_options());
  ASSERT_NE(connection.communicator, nullptr);
  float value = 3;
  float copy = 0;
  connection.communicator->all_reduce(&value, 1, DType::kFloat32, ReduceOp::kAvg).wait();
  connection.communicator->all_gather(&value, &copy, 1, DType::kFloat32).wait();
  EXPECT_EQ(copy, 3);
}

}  // namespace
}  // namespace deepscale
