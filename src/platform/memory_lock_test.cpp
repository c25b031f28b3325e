#include "platform/memory_lock.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "deepscale/error.h"
#include "platform/private_memory.h"
#ifndef _WIN32
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace deepscale {
namespace {

constexpr int64_t kBytes = 1 << 20;

// Sanitizers put a function that does nothing in place of mlock.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kLocksArePretended = true;
#else
constexpr bool kLocksArePretended = false;
#endif

TEST(MemoryLock, HoldsPagesAndGivesThemBack) {
  const PrivateMemory memory(kBytes);
  const int64_t before = memory_lock_facts().locked_bytes;
  {
    MemoryLock lock(memory.data(), kBytes);
    EXPECT_EQ(lock.bytes(), kBytes);
    std::memset(memory.data(), 1, kBytes);
#ifndef _WIN32
    EXPECT_EQ(memory_lock_facts().locked_bytes, before + (kLocksArePretended ? 0 : kBytes));
#endif
    MemoryLock moved = std::move(lock);
    EXPECT_EQ(moved.bytes(), kBytes);
    const PrivateMemory other(kBytes);
    moved = MemoryLock(other.data(), kBytes);
  }
  EXPECT_EQ(memory_lock_facts().locked_bytes, before);
  const MemoryLock again(memory.data(), kBytes);
}

TEST(MemoryLock, RefusesWhatIsNoWholePage) {
  const PrivateMemory memory(kBytes);
  EXPECT_THROW(MemoryLock(memory.data() + 1, kBytes - 1), IoError);
  EXPECT_THROW(MemoryLock(memory.data(), 0), IoError);
  EXPECT_THROW(MemoryLock(nullptr, kBytes), IoError);
}

TEST(MemoryLock, RefusesMemoryThatIsNotThere) {
  if (kLocksArePretended) GTEST_SKIP();
  char* data = nullptr;
  {
    const PrivateMemory memory(kBytes);
    data = memory.data();
  }
  EXPECT_THROW(MemoryLock(data, kBytes), IoError);
}

TEST(MemoryLock, FactsSayHowToRaiseTheLimit) {
  const MemoryLockFacts facts = memory_lock_facts();
  EXPECT_FALSE(facts.limit_name.empty());
  EXPECT_NE(facts.how_to_raise.find("raise"), std::string::npos);
}

#ifndef _WIN32
/// In a child process without the privilege to exceed limits: soft limit `soft`, hard limit `hard`. Exit code 0:
/// locked, 1: refused with a message that names the limit, 2: refused otherwise.
int lock_with_limits(rlim_t soft, rlim_t hard, int64_t bytes) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit = {soft, hard};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) _exit(50);
    struct {
      uint32_t version = 0x20080522;  // _LINUX_CAPABILITY_VERSION_3
      int pid = 0;
    } header;
    const uint32_t no_capabilities[6] = {};
    if (syscall(SYS_capset, &header, no_capabilities) != 0) _exit(51);
    const PrivateMemory memory(bytes);
    try {
      const MemoryLock lock(memory.data(), bytes);
      _exit(0);
    } catch (const IoError& error) {
      const std::string expected = "cannot lock " + std::to_string(bytes) + " bytes of memory: RLIMIT_MEMLOCK allows " +
                                   std::to_string(hard) + " bytes, and 0 are locked already; raise it with";
      _exit(std::string(error.what()).starts_with(expected) ? 1 : 2);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

TEST(MemoryLock, SaysWhichLimitForbidsIt) {
  if (kLocksArePretended) GTEST_SKIP();
  EXPECT_EQ(lock_with_limits(65536, 65536, kBytes), 1);
  EXPECT_EQ(lock_with_limits(65536, 65536, 65536), 0);
}

TEST(MemoryLock, RaisesTheSoftLimitItself) {
  EXPECT_EQ(lock_with_limits(65536, 4 * kBytes, kBytes), 0);
}
#endif

}  // namespace
}  // namespace deepscale
