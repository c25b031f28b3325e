// What only Linux has: kernels that forbid io_uring, a device that is always full, holes, areas of registered memory,
// file systems in memory.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "deepscale/error.h"
#include "platform/async_file.h"
#include "platform/disk_identity.h"
#include "platform/disk_space.h"
#include "platform/files.h"
#include "platform/private_memory.h"

namespace deepscale {
namespace {

/// io_uring_setup fails with `reason` in this process from here on, as a container's filter has it; except for rings of
/// `allowed_entries`.
bool forbid_io_uring(int reason, unsigned allowed_entries = 0) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[0])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed_entries, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(reason)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {6, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/// Runs in a process of its own; its result is that process's exit code.
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 99;
    try {
      code = body();
    } catch (const std::exception& error) {
      (void)!write(STDERR_FILENO, error.what(), strlen(error.what()));
    }
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

TEST(AsyncFileHoles, NothingIsReservedBeforeTheBeginning) {
  const std::string path = "async_file_linux_test_" + std::to_string(getpid());
  const auto space = disk_space(".");
  ASSERT_TRUE(space.has_value());
  const AsyncFileQueue queue;
  const AsyncFile file = queue.open(path, FileMode::kCreate, FileCaching::kDirect);
  const int64_t begin = std::min(space->total_bytes * 2, int64_t{1} << 40) / 4096 * 4096;
  file.preallocate(begin + 8192, begin);
  EXPECT_EQ(file.bytes(), begin + 8192);
  struct stat status = {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_LE(status.st_blocks * 512, 1 << 20);
  remove_file(path);
}

/// Memory of `bytes` that is the same few pages again and again: what registering costs is page tables.
class RepeatedPages {
 public:
  explicit RepeatedPages(int64_t bytes) : bytes_(bytes), file_(memfd_create("repeated_pages", MFD_CLOEXEC)) {
    constexpr int64_t kPart = 16 << 20;
    if (file_ < 0 || ftruncate(file_, kPart) != 0) return;
    void* const all = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return;
    data_ = static_cast<char*>(all);
    for (int64_t at = 0; at < bytes; at += kPart) {
      mmap(data_ + at, kPart, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_, 0);
    }
  }
  RepeatedPages(const RepeatedPages&) = delete;
  RepeatedPages& operator=(const RepeatedPages&) = delete;
  ~RepeatedPages() {
    if (data_ != nullptr) munmap(data_, bytes_);
    if (file_ >= 0) close(file_);
  }
  [[nodiscard]] char* data() const { return data_; }

 private:
  int64_t bytes_;
  int file_;
  char* data_ = nullptr;
};

int64_t pinned_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmPin:")) return std::stoll(line.substr(6));
  }
  return -1;
}

TEST(AsyncFileBuffers, TheEndOfOneAreaLeavesTheOneBehindItRegistered) {
  if (!choose_async_engine().reason.empty()) GTEST_SKIP() << "no io_uring here";
  constexpr int64_t kGib = 1 << 30;
  const RepeatedPages memory(kGib + (16 << 20));
  ASSERT_NE(memory.data(), nullptr);
  const AsyncFileQueue queue;
  const int64_t before = pinned_kib();
  std::optional<BufferRegistration> first = queue.register_buffer(memory.data(), kGib);
  const int64_t with_first = pinned_kib();
  const BufferRegistration second = queue.register_buffer(memory.data() + kGib, 16 << 20);
  const int64_t with_both = pinned_kib();
  if (!first->active() || !second.active() || with_both <= with_first || with_first <= before) {
    GTEST_SKIP() << "buffers of this kind are not registered here: " << first->reason() << second.reason();
  }
  first.reset();
  EXPECT_EQ(pinned_kib() - before, with_both - with_first);
}

TEST(AsyncFileBuffers, TooManyAreRefusedByTheirNumber) {
  if (!choose_async_engine().reason.empty()) GTEST_SKIP() << "no io_uring here";
  const PrivateMemory memory(300 * 4096);
  const AsyncFileQueue queue;
  std::vector<BufferRegistration> parts;
  for (int i = 0; i < 257; ++i) parts.push_back(queue.register_buffer(memory.data() + i * 4096, 4096));
  if (!parts.front().active()) GTEST_SKIP() << "nothing can be registered here: " << parts.front().reason();
  EXPECT_TRUE(parts[255].active());
  EXPECT_EQ(parts[256].reason(), "more than 256 buffers, of 1 GiB at most, in one queue");
}

/// What a child does with a queue of its parent that writes; 0 when all went as it should.
int leave_queue_of_parent(std::unique_ptr<AsyncFileQueue>& queue, std::optional<AsyncFile>& file,
                          std::optional<FileTransfer>& waited, std::optional<FileTransfer>& dropped) {
  alarm(60);  // ends this process when it hangs
  if (!waited->done()) return 1;
  try {
    waited->wait();
    return 2;
  } catch (const IoError& error) {
    if (std::string(error.what()).find("after the fork") == std::string::npos) return 3;
  }
  dropped.reset();
  file.reset();
  const AsyncFile other = queue->open("/proc/self/stat", FileMode::kRead, FileCaching::kBuffered);
  queue.reset();
  return 0;
}

TEST(AsyncForks, AChildDropsTheQueueOfItsParentWhichGoesOn) {
  const std::string path = "async_file_forks_" + std::to_string(getpid());
  for (const AsyncEngine engine : {AsyncEngine::kAutomatic, AsyncEngine::kThreads}) {
    const AsyncFileOptions options = {.depth = 1, .block_bytes = 4096, .engine = engine};
    auto queue = std::make_unique<AsyncFileQueue>(options);
    std::optional file = queue->open(path, FileMode::kCreate, FileCaching::kBuffered);
    const std::vector<char> data(16 << 20, 'x');
    const auto bytes = static_cast<int64_t>(data.size());
    // Thousands of blocks, one after the other: under way long after the fork.
    std::optional dropped = file->write(0, data.data(), bytes);
    std::optional waited = file->write(bytes, data.data(), bytes);
    EXPECT_EQ(in_child([&] { return leave_queue_of_parent(queue, file, waited, dropped); }), 0)
        << async_engine_name(engine);
    EXPECT_NO_THROW(dropped->wait());
    EXPECT_NO_THROW(waited->wait());
    EXPECT_NO_THROW(file->write(0, data.data(), 10).wait());
    EXPECT_EQ(file->bytes(), 2 * bytes);
    remove_file(path);
  }
}

TEST(FileSystems, WhatDoesNotExistYetWillBeWhereTheFolderAboveIs) {
  const std::string here = file_system_of(".").key;
  EXPECT_FALSE(here.empty());
  EXPECT_EQ(file_system_of("").key, here);
  EXPECT_EQ(file_system_of("not/yet/there").key, here);
  EXPECT_FALSE(file_system_of("/").key.empty());
}

TEST(FileSystems, EachTmpfsHasARoomOfItsOwn) {
  std::map<std::string, dev_t> seen;
  std::set<dev_t> devices;
  std::ifstream mounts("/proc/self/mounts");
  std::string source, folder, type, rest;
  while (mounts >> source >> folder >> type && std::getline(mounts, rest)) {
    struct stat status = {};
    if (type != "tmpfs" || ::stat(folder.c_str(), &status) != 0) continue;
    const FileSystemFacts facts = file_system_of(folder);
    if (!facts.in_memory) continue;  // something else is mounted over it
    seen.emplace(facts.key, status.st_dev);
    devices.insert(status.st_dev);
  }
  if (devices.empty()) GTEST_SKIP() << "no tmpfs here";
  EXPECT_EQ(seen.size(), devices.size());
}

TEST(AsyncEngines, ThreadsStepInWhereTheKernelForbidsIoUring) {
  for (const int reason : {EPERM, ENOSYS}) {
    EXPECT_EQ(in_child([&] {
                unsetenv("DEEPSCALE_ASYNC_IO");
                if (!forbid_io_uring(reason)) return 1;
                const AsyncFileQueue queue;
                if (queue.engine().engine != AsyncEngine::kThreads) return 2;
                const char* const name = reason == EPERM ? "EPERM" : "ENOSYS";
                if (queue.engine().reason.find(name) == std::string::npos) return 3;
                try {
                  (void)choose_async_engine(AsyncEngine::kIoUring);
                  return 4;
                } catch (const ConfigError& error) {
                  if (std::string(error.what()).find(name) == std::string::npos) return 5;
                }
                const AsyncFile file = queue.open("/proc/self/stat", FileMode::kRead, FileCaching::kBuffered);
                char data[3] = {};
                file.read(0, data, sizeof(data)).wait();
                return data[0] >= '1' && data[0] <= '9' ? 0 : 6;
              }),
              0)
        << reason;
  }
}

TEST(AsyncEngines, ThreadsStepInWhereOnlySmallRingsAreAllowed) {
  EXPECT_EQ(in_child([] {
              unsetenv("DEEPSCALE_ASYNC_IO");
              if (!forbid_io_uring(ENOMEM, /*allowed_entries=*/2)) return 1;
              if (choose_async_engine().engine != AsyncEngine::kIoUring) return 2;
              const AsyncFileQueue queue({.depth = 64});
              if (queue.engine().engine != AsyncEngine::kThreads) return 3;
              if (queue.engine().reason.find("cannot make an io_uring of depth 64") == std::string::npos) return 4;
              try {
                const AsyncFileQueue strict({.depth = 64, .engine = AsyncEngine::kIoUring});
                return 5;
              } catch (const IoError&) {
                return 0;
              }
            }),
            0);
}

TEST(AsyncEngines, TheEnvironmentChooses) {
  setenv("DEEPSCALE_ASYNC_IO", "threads", 1);
  EXPECT_EQ(choose_async_engine().engine, AsyncEngine::kThreads);
  EXPECT_NE(choose_async_engine().reason.find("DEEPSCALE_ASYNC_IO=threads"), std::string::npos);
  setenv("DEEPSCALE_ASYNC_IO", "completion_port", 1);
  EXPECT_THROW((void)choose_async_engine(), ConfigError);
  setenv("DEEPSCALE_ASYNC_IO", "fast", 1);
  EXPECT_THROW((void)choose_async_engine(), ConfigError);
  unsetenv("DEEPSCALE_ASYNC_IO");
  EXPECT_EQ(choose_async_engine().engine == AsyncEngine::kIoUring, choose_async_engine().reason.empty());
}

TEST(AsyncEngines, AFullDiskIsReportedByEveryEngine) {
  for (const AsyncEngine wanted : {AsyncEngine::kAutomatic, AsyncEngine::kThreads}) {
    const AsyncFileQueue queue({.depth = 2, .block_bytes = 4096, .engine = wanted});
    const AsyncFile file = queue.open("/dev/full", FileMode::kReadWrite, FileCaching::kDirect);
    EXPECT_FALSE(file.direct());
    file.preallocate(10'000);  // a device has the space that it has
    char data[10'000] = {};
    try {
      file.write(0, data, sizeof(data)).wait();
      ADD_FAILURE() << "nothing thrown";
    } catch (const IoError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("/dev/full: No space left on device"), std::string::npos) << message;
    }
  }
}

TEST(AsyncFiles, TemporaryFilesHaveNoNameWhileTheyAreUsed) {
  const std::string folder = "async_file_linux_test_" + std::to_string(getpid());
  make_directories(folder);
  const AsyncFileQueue queue;
  const AsyncFile file = queue.open_temporary(folder, FileCaching::kDirect);
  EXPECT_TRUE(list_directory(folder).empty());
  EXPECT_TRUE(remove_file(folder));  // even the folder may go
  std::vector<char> data(10'000, 'x');
  file.write(0, data.data(), 10'000).wait();
  data.assign(10'000, 0);
  file.read(0, data.data(), 10'000).wait();
  EXPECT_EQ(data, std::vector<char>(10'000, 'x'));
}

TEST(AsyncFiles, AFolderThatNobodyMayWriteIsNamed) {
  const AsyncFileQueue queue;
  for (const std::string folder : {"/sys/kernel", "/proc"}) {  // not even the administrator may
    try {
      (void)queue.open_temporary(folder, FileCaching::kDirect);
      ADD_FAILURE() << folder;
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("cannot make a temporary file in " + folder), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace deepscale
