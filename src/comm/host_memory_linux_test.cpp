// What only Linux has: fork(), after which a child has the books of its parent's memory, but not the memory; and pages
// of shared memory that go back to the system. The counterpart is host_memory_windows_test.cpp.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <tuple>

#include "base/error.h"
#include "comm/host_memory.h"

namespace deepscale {
namespace {

std::shared_ptr<HostMemory> make_memory(int64_t bytes) {
  std::vector<std::shared_ptr<SharedMemory>> segments = {std::make_shared<SharedMemory>(SharedMemory::create(bytes))};
  return std::make_shared<HostMemory>(0, std::move(segments), 4096);
}

int64_t shared_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "RssShmem:") continue;
    int64_t kib = 0;
    status >> kib;
    return kib * 1024;
  }
  return -1;
}

TEST(HostMemory, LargeBlocksGoBackToTheSystem) {
  const auto memory = make_memory(1 << 30);
  const int64_t before = shared_resident_bytes();
  {
    const auto block = memory->allocate(100 << 20);
    std::fill_n(static_cast<char*>(block.get()), 100 << 20, 'x');
    EXPECT_GE(shared_resident_bytes(), before + (90 << 20));
  }
  EXPECT_LE(shared_resident_bytes(), before + (4 << 20));
}

TEST(HostMemory, AnotherProcessLeavesTheCreatorsMemoryAlone) {
  const auto memory = make_memory(64 << 20);
  auto block = memory->allocate(8 << 20);
  char* const data = static_cast<char*>(block.get());
  data[4 << 20] = 'x';
  const pid_t child = fork();
  if (child == 0) {
    block.reset();
    try {
      std::ignore = memory->allocate(10);
    } catch (const IoError&) {
      _exit(0);
    }
    _exit(1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(data[4 << 20], 'x');
}

}  // namespace
}  // namespace deepscale
