// A process shares memory on Windows only by opening it by name. The counterpart of host_memory_linux_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>

#include "comm/host_memory.h"
#include "platform/test_children.h"

namespace deepscale {
namespace {

TEST(Children, DISABLED_OpensTheSegmentAndEnds) {
  const SharedMemory segment = SharedMemory::open(child_arguments().at(0));
  finish_child(segment.bytes() == 64 << 20 ? 0 : 1);
}

TEST(HostMemory, LargeBlocksGoBackToTheSystem) {
  // Windows keeps the pages of a section; what it promises is that they are clean for whoever has them next.
  const auto segment = std::make_shared<SharedMemory>(SharedMemory::create(1 << 30));
  const auto memory = std::make_shared<HostMemory>(0, std::vector<std::shared_ptr<SharedMemory>>{segment}, 4096);
  int64_t offset = 0;
  {
    const auto block = memory->allocate(100 << 20);
    std::fill_n(static_cast<char*>(block.get()), 100 << 20, 'x');
    offset = memory->locate(block.get(), 1)->offset;
  }
  const char* const bytes = segment->data() + offset;
  EXPECT_TRUE(std::all_of(bytes, bytes + (100 << 20), [](char byte) { return byte == 0; }));
}

TEST(HostMemory, AnotherProcessLeavesTheCreatorsMemoryAlone) {
  const auto segment = std::make_shared<SharedMemory>(SharedMemory::create(64 << 20));
  const auto memory = std::make_shared<HostMemory>(0, std::vector<std::shared_ptr<SharedMemory>>{segment}, 4096);
  const auto block = memory->allocate(8 << 20);
  char* const data = static_cast<char*>(block.get());
  data[4 << 20] = 'x';
  TestChildren children;
  EXPECT_EQ(children.wait(children.start("OpensTheSegmentAndEnds", {segment->token()})), 0);
  EXPECT_EQ(data[4 << 20], 'x');
}

}  // namespace
}  // namespace deepscale
