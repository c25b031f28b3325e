#include "comm/host_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "base/error.h"

namespace deepscale {
namespace {

std::shared_ptr<HostMemory> make_memory(int64_t bytes, int64_t reserved = 4096) {
  std::vector<std::shared_ptr<SharedMemory>> segments = {std::make_shared<SharedMemory>(SharedMemory::create(bytes)),
                                                         std::make_shared<SharedMemory>(SharedMemory::create(bytes))};
  return std::make_shared<HostMemory>(0, std::move(segments), reserved);
}

TEST(HostAllocator, BlocksAreAlignedDisjointAndComeBack) {
  HostAllocator allocator(4096, 64 << 20);
  const int64_t all = allocator.free_bytes();
  std::mt19937 random(3);
  std::vector<HostAllocator::Block> blocks;
  for (int round = 0; round < 3000; ++round) {
    if (random() % 5 < 3 || blocks.empty()) {
      const auto bytes = static_cast<int64_t>(random() % (random() % 3 == 0 ? 300000 : 3000));
      const auto block = allocator.take(bytes);
      ASSERT_TRUE(block.has_value());
      ASSERT_GE(block->bytes, bytes);
      ASSERT_EQ(block->offset % (bytes >= HostAllocator::kLarge ? HostAllocator::kPage : HostAllocator::kAlignment), 0);
      for (const auto& other : blocks) {
        ASSERT_TRUE(block->offset + block->bytes <= other.offset || other.offset + other.bytes <= block->offset);
      }
      blocks.push_back(*block);
    } else {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      std::ignore = allocator.give(blocks.back().offset);
      blocks.pop_back();
    }
  }
  for (const auto& block : blocks) std::ignore = allocator.give(block.offset);
  EXPECT_EQ(allocator.used_bytes(), 0);
  EXPECT_EQ(allocator.free_bytes(), all);
  std::ignore = allocator.trim();
  EXPECT_EQ(allocator.free_bytes(), all);
  EXPECT_TRUE(allocator.take(all).has_value()) << "free neighbours have merged";
}

TEST(HostAllocator, CancelUndoesATakeWithTheRefillThatItNeeded) {
  HostAllocator allocator(0, 4 << 20);
  const auto block = allocator.take(60000);  // needs a refill, which leaves a dirty rest
  ASSERT_TRUE(block->commit.has_value());
  const int64_t before = allocator.free_bytes();
  std::vector<HostAllocator::Block> others;
  while (others.empty() || !others.back().commit) others.push_back(*allocator.take(60000));
  const HostAllocator::Block last = others.back();
  others.pop_back();
  allocator.cancel(last);
  for (const auto& other : others) std::ignore = allocator.give(other.offset);
  EXPECT_EQ(allocator.free_bytes(), before);
  std::ignore = allocator.give(block->offset);
  std::ignore = allocator.trim();
  EXPECT_TRUE(allocator.take(4 << 20).has_value());
}

TEST(HostAllocator, TooMuchIsRefusedWithoutHarm) {
  HostAllocator allocator(0, 1 << 20);
  EXPECT_FALSE(allocator.take(2 << 20).has_value());
  EXPECT_TRUE(allocator.take(1 << 20).has_value());
  EXPECT_FALSE(allocator.take(1).has_value());
}

TEST(HostMemory, BlocksAreZeroEvenWhenTheirMemoryWasUsedBefore) {
  const auto memory = make_memory(64 << 20);
  for (int round = 0; round < 3; ++round) {
    for (const int64_t bytes : {1, 100, 5000, 70000, 900000, 5000000}) {
      const auto block = memory->allocate(bytes);
      const char* const data = static_cast<const char*>(block.get());
      ASSERT_TRUE(std::all_of(data, data + bytes, [](char byte) { return byte == 0; })) << bytes;
      std::fill_n(static_cast<char*>(block.get()), bytes, 'x');
    }
  }
  EXPECT_EQ(memory->allocated_bytes(), 0);
}

TEST(HostMemory, LocateFindsOwnAndPeersBytesAndNothingElse) {
  const auto memory = make_memory(1 << 20);
  const auto block = memory->allocate(1000);
  const auto found = memory->locate(block.get(), 1000);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->rank, 0);
  EXPECT_EQ(memory->at(*found), block.get());
  EXPECT_EQ(memory->locate(memory->at({1, 5000}), 10)->rank, 1);
  EXPECT_FALSE(memory->locate(memory->at({1, (1 << 20) - 5}), 10).has_value()) << "reaches over the end";
  int local = 0;
  EXPECT_FALSE(memory->locate(&local, 4).has_value());
  EXPECT_THROW(std::ignore = memory->at({1, 2 << 20}), CommError);
}

TEST(HostMemory, DeferredBlocksAreFreedWhenTheirTimeHasCome) {
  const auto memory = make_memory(1 << 20);
  bool ready = false;
  memory->free_when({memory->allocate_offset(100), memory->allocate_offset(70000)}, [&] { return ready; });
  EXPECT_GE(memory->allocated_bytes(), 70000);
  ready = true;
  EXPECT_NE(memory->allocate(1), nullptr);
  EXPECT_EQ(memory->allocated_bytes(), 0);
}

TEST(HostMemory, ThreadsMayAllocateAtOnce) {
  const auto memory = make_memory(256 << 20);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(static_cast<unsigned>(thread));
      std::vector<std::shared_ptr<void>> blocks;
      for (int round = 0; round < 500; ++round) {
        const int64_t bytes = 1 + random() % 100000;
        blocks.push_back(memory->allocate(bytes));
        static_cast<char*>(blocks.back().get())[bytes - 1] = 'x';
        if (blocks.size() > 20) blocks.erase(blocks.begin() + static_cast<long>(random() % 20));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(memory->allocated_bytes(), 0);
}

TEST(HostMemory, AFullSegmentIsAnErrorThatSaysSo) {
  const auto memory = make_memory(1 << 20);
  try {
    std::ignore = memory->allocate(2 << 20);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("segment size"), std::string::npos) << error.what();
  }
  EXPECT_THROW(std::ignore = memory->allocate(-1), IoError);
}

}  // namespace
}  // namespace deepscale
