// What only Linux has: kernels that forbid io_uring, and a device that is always full.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "deepscale/error.h"
#include "platform/async_file.h"
#include "platform/files.h"

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
