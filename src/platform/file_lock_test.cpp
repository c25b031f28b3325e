#include "platform/file_lock.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

std::string lock_name() {
  return ::testing::TempDir() + "file_lock_test_" + std::to_string(this_process_id());
}

TEST(FileLock, OneHolderAtATime) {
  const std::string path = lock_name();
  std::atomic<int> holders = 0;
  std::atomic<int> turns = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const auto lock = FileLock::acquire(path, milliseconds(30'000));
      EXPECT_TRUE(lock.has_value());
      EXPECT_EQ(++holders, 1);
      std::this_thread::sleep_for(milliseconds(5));
      --holders;
      ++turns;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(turns, 4);
  EXPECT_TRUE(remove_file(path));
}

TEST(FileLock, GivesUpWhenItsTimeIsOver) {
  const std::string path = lock_name();
  const auto held = FileLock::acquire(path, milliseconds(0));
  ASSERT_TRUE(held.has_value());
  EXPECT_FALSE(FileLock::acquire(path, milliseconds(20)).has_value());
  EXPECT_FALSE(FileLock::acquire(path + "/below", milliseconds(20)).has_value());
}

TEST(FileLock, IsFreeAgainAfterItsObject) {
  const std::string path = lock_name();
  for (int round = 0; round < 3; ++round) EXPECT_TRUE(FileLock::acquire(path, milliseconds(0)).has_value());
  EXPECT_TRUE(remove_file(path));
}

}  // namespace
}  // namespace deepscale
