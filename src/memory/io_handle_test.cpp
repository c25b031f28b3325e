#include "memory/io_handle.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "deepscale/error.h"
#include "platform/disk_space.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class IoHandles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = "io_handle_test_" + std::to_string(this_process_id());
    make_directories(folder_);
  }
  void TearDown() override {
    for (const std::string& name : list_directory(folder_)) remove_file(folder_ + "/" + name);
    remove_file(folder_);
  }
  [[nodiscard]] std::string path(const std::string& name = "file") const { return folder_ + "/" + name; }

  /// A pinned buffer with bytes that depend on `seed`.
  IoBuffer filled(int64_t bytes, uint32_t seed) {
    IoBuffer buffer = empty(bytes);
    std::mt19937 generator(seed);
    for (int64_t i = 0; i < bytes; ++i) buffer.data[i] = static_cast<char>(generator());
    return buffer;
  }
  IoBuffer empty(int64_t bytes) {
    const auto memory = handle_.allocate(bytes);
    return {memory.get(), bytes, memory};
  }
  template <typename Action>
  static std::string failure_of(Action action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string folder_;
  IoHandle handle_{{.block_bytes = 128 * 1024, .queue_depth = 8}};
};

bool equal(const IoBuffer& a, const IoBuffer& b) {
  return a.bytes == b.bytes && std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes)) == 0;
}

TEST_F(IoHandles, BuffersOfAnySizeComeBackUnchanged) {
  for (const int64_t bytes : {0, 1, 100, 4095, 4096, 4097, 1 << 20, (3 << 20) + 12345}) {
    const IoBuffer written = filled(bytes, 1);
    const IoBuffer read = empty(bytes);
    const std::string name = path(std::to_string(bytes));
    handle_.write(written, {.file = name, .validate = true});
    EXPECT_EQ(file_size(name), bytes);
    handle_.read(read, {.file = name, .validate = true});
    EXPECT_TRUE(equal(written, read)) << bytes;
  }
  EXPECT_EQ(handle_.wait(), 0);
}

TEST_F(IoHandles, ManyOperationsAreUnderWayAndCounted) {
  constexpr int kFiles = 12;
  constexpr int64_t kBytes = 700'000;
  std::vector<IoBuffer> written, read;
  for (uint32_t i = 0; i < kFiles; ++i) {
    written.push_back(filled(kBytes, i));
    handle_.start_write(written.back(), {.file = path(std::to_string(i))});
  }
  EXPECT_EQ(handle_.wait(), kFiles);
  for (int i = 0; i < kFiles; ++i) {
    read.push_back(empty(kBytes));
    handle_.start_read(read.back(), {.file = path(std::to_string(i)), .validate = true});
  }
  handle_.write(written[0], {.file = path("in between")});  // waits for itself only
  EXPECT_EQ(handle_.wait(), kFiles);
  for (size_t i = 0; i < kFiles; ++i) EXPECT_TRUE(equal(written[i], read[i])) << i;
}

TEST_F(IoHandles, OffsetsSelectAPartOfTheFile) {
  constexpr int64_t kPart = 100'000;  // no whole pages
  std::vector<IoBuffer> parts;
  for (uint32_t i = 0; i < 4; ++i) parts.push_back(filled(kPart, i));
  for (const int64_t i : {3, 0, 2, 1}) {
    handle_.start_write(parts[static_cast<size_t>(i)], {.file = path(), .file_offset = i * kPart});
  }
  EXPECT_EQ(handle_.wait(), 4);
  EXPECT_EQ(file_size(path()), 4 * kPart);
  for (size_t i = 0; i < 4; ++i) {
    const IoBuffer read = empty(kPart);
    handle_.read(read, {.file = path(), .file_offset = static_cast<int64_t>(i) * kPart});
    EXPECT_TRUE(equal(parts[i], read)) << i;
  }
}

TEST_F(IoHandles, ABufferIsKeptUntilItsOperationIsOver) {
  constexpr int64_t kBytes = 4 << 20;
  const IoBuffer expected = filled(kBytes, 5);
  std::weak_ptr<void> watch;
  {
    IoBuffer buffer = filled(kBytes, 5);
    watch = buffer.owner;
    handle_.start_write(std::move(buffer), {.file = path()});
  }
  EXPECT_FALSE(watch.expired());
  EXPECT_EQ(handle_.wait(), 1);
  EXPECT_TRUE(watch.expired());
  const IoBuffer read = empty(kBytes);
  handle_.read(read, {.file = path()});
  EXPECT_TRUE(equal(expected, read));
}

TEST_F(IoHandles, WhatNobodyWaitedForIsWrittenWhenTheHandleEnds) {
  constexpr int64_t kBytes = 8 << 20;
  const IoBuffer written = filled(kBytes, 6);
  {
    IoHandle other({.block_bytes = 4096, .queue_depth = 2});
    other.start_write(written, {.file = path()});
  }
  const IoBuffer read = empty(kBytes);
  handle_.read(read, {.file = path()});
  EXPECT_TRUE(equal(written, read));
}

TEST_F(IoHandles, ReadingMoreThanThereIsNamesFileAndSizes) {
  handle_.write(filled(10'000, 1), {.file = path()});
  const std::string message = failure_of([&] { handle_.read(empty(20'000), {.file = path()}); });
  EXPECT_NE(message.find("cannot read 20000 bytes at offset 0 of " + path() + ": the file has 10000 bytes"),
            std::string::npos)
      << message;
  EXPECT_NE(failure_of([&] { handle_.start_read(empty(10'000), {.file = path(), .file_offset = 1}); }), "");
  EXPECT_NE(failure_of([&] { handle_.start_read(empty(1), {.file = path(), .file_offset = -1}); }), "");
  EXPECT_NE(failure_of([&] { handle_.read(empty(1), {.file = path("none")}); }).find(path("none")), std::string::npos);
  EXPECT_EQ(handle_.wait(), 0);  // nothing of that is under way
  handle_.read(empty(5'000), {.file = path()});
  handle_.read(empty(10'000), {.file = path()}, IoLength::kWhole);
  handle_.read(empty(5'000), {.file = path(), .file_offset = 5'000}, IoLength::kWhole);
  const std::string longer = failure_of([&] { handle_.read(empty(5'000), {.file = path()}, IoLength::kWhole); });
  EXPECT_NE(longer.find("the file has 10000 bytes"), std::string::npos) << longer;
}

TEST_F(IoHandles, AFullDiskIsAnErrorBeforeTheFirstByte) {
  const auto space = disk_space(folder_);
  ASSERT_TRUE(space.has_value());
  IoBuffer buffer = filled(4096, 1);
  buffer.bytes = space->total_bytes * 2;  // nobody gets to the bytes that there are not
  const std::string message = failure_of([&] { handle_.start_write(buffer, {.file = path()}); });
  EXPECT_NE(message.find(path()), std::string::npos) << message;
  EXPECT_NE(message.find("bytes are free there"), std::string::npos) << message;
}

TEST_F(IoHandles, WaitReportsTheFirstFailureAndEndsAllOperations) {
  const IoBuffer mine = filled(100'000, 1), other = filled(100'000, 2), seen = empty(100'000);
  for (const char* name : {"a", "b", "c"}) handle_.start_write(mine, {.file = path(name), .validate = true});
  IoHandle neighbour({});
  for (const char* name : {"a", "b", "c"}) {
    while (!equal(seen, mine)) neighbour.read(seen, {.file = path(name)});
    if (*name != 'a') neighbour.write(other, {.file = path(name)});  // so that validate finds other bytes
    std::memset(seen.data, 0, 100'000);
  }
  const std::string message = failure_of([&] { handle_.wait(); });
  EXPECT_NE(message.find("validate: " + path("b") + " and the buffer of 100000 bytes differ at byte 0"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("(and 1 more of 3 operations failed)"), std::string::npos) << message;
  EXPECT_EQ(handle_.wait(), 0);
}

TEST_F(IoHandles, ManyThreadsShareAHandle) {
  std::vector<std::thread> threads;
  std::atomic<int64_t> waited = 0;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      for (int round = 0; round < 10; ++round) {
        handle_.start_write(filled(50'000, rank), {.file = path(std::to_string(rank))});
        waited += handle_.wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(waited + handle_.wait(), 40);
  for (uint32_t rank = 0; rank < 4; ++rank) {
    const IoBuffer read = empty(50'000);
    handle_.read(read, {.file = path(std::to_string(rank))});
    EXPECT_TRUE(equal(read, filled(50'000, rank)));
  }
}

TEST_F(IoHandles, BuffersAreSharedBetweenHandlesThatShallShareThem) {
  const auto common = std::make_shared<PinnedBuffers>();
  IoHandle first({}, common), second({}, common);
  const auto memory = first.allocate(100);
  EXPECT_EQ(second.buffers().is_pinned(memory.get(), 100), common->refusal().empty());
  EXPECT_FALSE(handle_.buffers().is_pinned(memory.get(), 100));
  EXPECT_TRUE(second.buffers().free(memory.get()));
  EXPECT_FALSE(first.buffers().free(memory.get()));
}

TEST_F(IoHandles, WhoWaitsHearsOfArrivalsOfWhatWentWell) {
  handle_.write(filled(5'000, 1), {.file = path()});
  int arrivals = 0;
  IoBuffer good = empty(5'000);
  const IoBuffer expected = filled(5'000, 1);
  good.arrived = [&, data = good.data] { arrivals += std::memcmp(data, expected.data, 5'000) == 0 ? 1 : 100; };
  handle_.start_read(good, {.file = path()});
  EXPECT_EQ(handle_.wait(), 1);
  EXPECT_EQ(arrivals, 1);
  handle_.read(good, {.file = path()});
  EXPECT_EQ(arrivals, 2);
  IoBuffer refused = empty(5'000);
  refused.arrived = [] { throw Error("the device is gone"); };
  handle_.start_read(refused, {.file = path()});
  EXPECT_NE(failure_of([&] { handle_.wait(); }).find("the device is gone"), std::string::npos);
}

TEST_F(IoHandles, NumbersOutOfRangeAreRefusedAndOddOnesRounded) {
  EXPECT_THROW(IoHandle({.block_bytes = 0}), ConfigError);
  EXPECT_THROW(IoHandle({.block_bytes = int64_t{1} << 40}), ConfigError);
  EXPECT_THROW(IoHandle({.queue_depth = 0}), ConfigError);
  EXPECT_THROW(IoHandle({.intra_op_parallelism = -1}), ConfigError);
  IoHandle odd({.block_bytes = 1000, .queue_depth = 100'000, .intra_op_parallelism = 1'000'000});
  const IoBuffer written = filled(30'000, 1);
  odd.write(written, {.file = path(), .validate = true});
}

TEST(PinnedBuffers, AreZeroedAlignedAndKnownUntilTheyAreFreed) {
  PinnedBuffers buffers;
  const auto memory = buffers.allocate(10'000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 4096, 0u);
  EXPECT_EQ(std::string_view(memory.get(), 10'000), std::string(10'000, '\0'));
  const bool locked = buffers.refusal().empty();
  EXPECT_EQ(buffers.is_pinned(memory.get(), 10'000), locked);
  EXPECT_EQ(buffers.is_pinned(memory.get() + 9'999, 1), locked);
  EXPECT_FALSE(buffers.is_pinned(memory.get(), 1 << 20));
  int other = 0;
  EXPECT_FALSE(buffers.is_pinned(&other, 1));
  EXPECT_FALSE(buffers.free(memory.get() + 1));
  EXPECT_TRUE(buffers.free(memory.get()));
  EXPECT_FALSE(buffers.free(memory.get()));
  EXPECT_FALSE(buffers.is_pinned(memory.get(), 1));
  memory.get()[0] = 1;  // it is still there
  EXPECT_THROW((void)buffers.allocate(-1), IoError);
  EXPECT_NE(buffers.allocate(0), nullptr);
  EXPECT_FALSE(buffers.is_pinned(nullptr, 1));
}

TEST(PinnedBuffers, OutliveTheirMaker) {
  std::shared_ptr<char> memory;
  {
    IoHandle handle({});
    memory = handle.allocate(5'000'000);
  }
  std::memset(memory.get(), 1, 5'000'000);
}

}  // namespace
}  // namespace deepscale
