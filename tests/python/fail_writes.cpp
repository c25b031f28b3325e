// A disk that fails, for tests: preloaded (LD_PRELOAD), the k-th change of a file under the folder FAIL_WRITES_IN
// fails, and where wanted all after it. Changes are writes, syncs, renames, and files and folders that are made.
// test_write_failures.py builds it. io_uring does not come by here: DEEPSCALE_ASYNC_IO=threads.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<long> counted{0}, fails_at{0};
std::atomic<int> failure{0}, stays{0};

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

bool is_watched(const char* path) {
  const char* const folder = std::getenv("FAIL_WRITES_IN");
  return folder != nullptr && path != nullptr && std::strncmp(path, folder, std::strlen(folder)) == 0;
}

bool is_watched(int descriptor) {
  char link[64], path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof(path) - 1);
  if (length < 0) return false;
  path[length] = 0;
  return is_watched(path);
}

/// Whether this change is to fail; errno is set then.
template <typename File>
bool fails(File file) {
  const int kept = errno;
  if (!is_watched(file)) {
    errno = kept;
    return false;
  }
  const long number = ++counted;
  const bool now = fails_at > 0 && (number == fails_at || (stays != 0 && number > fails_at));
  errno = now ? failure.load() : kept;
  return now;
}

bool makes(int flags) {
  return (flags & (O_CREAT | O_TRUNC)) != 0;
}

template <typename Open>
int open_with(const char* name, const char* path, int flags, unsigned mode) {
  if (makes(flags) && fails(path)) return -1;
  return real<Open>(name)(path, flags, mode);
}

}  // namespace

extern "C" {

/// From now on: the k-th change fails with `error` (0: none does); sticky: and all after it. Returns how many there
/// were.
long fail_writes_arm(long k, int error, int sticky) {
  fails_at = 0;
  failure = error;
  stays = sticky;
  const long before = counted.exchange(0);
  fails_at = k;
  return before;
}

ssize_t write(int fd, const void* data, size_t bytes) {
  return fails(fd) ? -1 : real<ssize_t(int, const void*, size_t)>("write")(fd, data, bytes);
}
ssize_t writev(int fd, const iovec* parts, int count) {
  return fails(fd) ? -1 : real<ssize_t(int, const iovec*, int)>("writev")(fd, parts, count);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  return fails(fd) ? -1 : real<ssize_t(int, const void*, size_t, off_t)>("pwrite")(fd, data, bytes, offset);
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) {
  return fails(fd) ? -1 : real<ssize_t(int, const void*, size_t, off64_t)>("pwrite64")(fd, data, bytes, offset);
}
int fsync(int fd) {
  return fails(fd) ? -1 : real<int(int)>("fsync")(fd);
}
int fdatasync(int fd) {
  return fails(fd) ? -1 : real<int(int)>("fdatasync")(fd);
}
int rename(const char* from, const char* to) noexcept {
  return fails(to) ? -1 : real<int(const char*, const char*)>("rename")(from, to);
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  return fails(to) ? -1
                   : real<int(int, const char*, int, const char*, unsigned)>("renameat2")(from_folder, from, to_folder,
                                                                                          to, flags);
}
int mkdir(const char* path, mode_t mode) noexcept {
  return fails(path) ? -1 : real<int(const char*, mode_t)>("mkdir")(path, mode);
}
FILE* fopen(const char* path, const char* mode) {
  if (std::strchr(mode, 'r') == nullptr && fails(path)) return nullptr;
  return real<FILE*(const char*, const char*)>("fopen")(path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
  if (std::strchr(mode, 'r') == nullptr && fails(path)) return nullptr;
  return real<FILE*(const char*, const char*)>("fopen64")(path, mode);
}
int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const unsigned mode = makes(flags) ? va_arg(more, unsigned) : 0;
  va_end(more);
  return open_with<int(const char*, int, ...)>("open", path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const unsigned mode = makes(flags) ? va_arg(more, unsigned) : 0;
  va_end(more);
  return open_with<int(const char*, int, ...)>("open64", path, flags, mode);
}

}  // extern "C"
