// Files by descriptor, and the engine for kernels without io_uring: threads with pread and pwrite.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstring>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "platform/async_file.h"
#include "platform/async_internal.h"
#include "platform/async_uring_linux.h"
#include "platform/disk_space.h"
#include "platform/random.h"

namespace deepscale {
namespace async_internal {
namespace {

// More add nothing: a thread has one block under way, and disks reach their speed with about this many.
constexpr int kMostThreads = 16;

class ThreadsEngine final : public Engine {
 public:
  explicit ThreadsEngine(QueueCore& core) : core_(core) {
    const int count = std::min(core.depth(), kMostThreads);
    threads_.reserve(count);  // nothing but a thread may be missing once one runs
    try {
      for (int i = 0; i < count; ++i) threads_.emplace_back([this] { run(); });
    } catch (const std::system_error& error) {
      if (threads_.empty()) ds_throw<IoError>("cannot start a thread for asynchronous files: {}", error.what());
    }
  }

  ~ThreadsEngine() override {
    {
      const auto guard = core_.lock();
      stopping_ = true;
      work_.notify_all();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void wake() override { work_.notify_all(); }

 private:
  static int64_t move(const Block& block) {
    const OpenFile& file = *block.transfer->file;
    const int descriptor = static_cast<int>(block.direct ? file.direct : file.buffered);
    const auto bytes = static_cast<size_t>(block.bytes);
    const ssize_t moved = block.transfer->writing ? pwrite(descriptor, block.data, bytes, block.offset)
                                                  : pread(descriptor, block.data, bytes, block.offset);
    return moved >= 0 ? moved : -errno;
  }

  void run() {
    auto guard = core_.lock();
    while (!stopping_) {
      Block* const block = core_.take();
      if (block == nullptr) {
        work_.wait_for(guard, std::chrono::hours(1));  // see base/wait.h
        continue;
      }
      guard.unlock();
      const int64_t result = move(*block);
      guard.lock();
      core_.finished(*block, result);
    }
  }

  QueueCore& core_;
  std::condition_variable work_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

int open_retrying(const std::string& path, int flags) {
  for (;;) {
    const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
    if (descriptor >= 0 || errno != EINTR) return descriptor;
  }
}

/// What the file system says about direct access to the file, else what every disk accepts. False: it has none.
bool find_alignment(int descriptor, OpenFile& file) {
  const int64_t page = std::max<int64_t>(4096, sysconf(_SC_PAGESIZE));
  file.alignment = page;
  file.memory_alignment = page;
#ifdef STATX_DIOALIGN
  struct statx facts = {};
  if (statx(descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 && (facts.stx_mask & STATX_DIOALIGN) != 0) {
    if (facts.stx_dio_offset_align == 0) return false;
    file.alignment = std::max<int64_t>(page, facts.stx_dio_offset_align);
    file.memory_alignment = std::max<int64_t>(512, facts.stx_dio_mem_align);
  }
#else
  (void)descriptor;
#endif
  return true;
}

void open_direct(OpenFile& file, int access) {
  struct stat status = {};
  const int buffered = static_cast<int>(file.buffered);
  if (fstat(buffered, &status) != 0 || !(S_ISREG(status.st_mode) || S_ISBLK(status.st_mode))) return;
  const int direct = open_retrying(file.path, access | O_DIRECT);
  if (direct < 0) return;  // tmpfs and some network file systems refuse
  if (find_alignment(direct, file)) {
    file.direct = direct;
    return;
  }
  ::close(direct);
  file.alignment = file.memory_alignment = 1;
}

}  // namespace

OpenFile open_file(const std::string& path, FileMode mode, FileCaching caching) {
  OpenFile file;
  file.path = path;
  file.writable = mode != FileMode::kRead;
  const int flags = mode == FileMode::kRead        ? O_RDONLY
                    : mode == FileMode::kReadWrite ? O_RDWR | O_CREAT
                                                   : O_RDWR | O_CREAT | O_TRUNC;
  const int buffered = open_retrying(path, flags);
  DS_CHECK_AS(IoError, buffered >= 0, "cannot open {} for {}: {}", path, file.writable ? "writing" : "reading",
              std::strerror(errno));
  file.buffered = buffered;
  if (caching == FileCaching::kDirect) open_direct(file, flags & O_ACCMODE);
  return file;
}

OpenFile open_temporary_file(const std::string& folder, FileCaching caching) {
  OpenFile file;
  file.path = folder + "/.deepscale_" + random_token() + ".tmp";
  file.writable = true;
  const int buffered = open_retrying(file.path, O_RDWR | O_CREAT | O_EXCL);
  DS_CHECK_AS(IoError, buffered >= 0,
              "cannot make a temporary file in {}: {}; name a folder that exists and can be written", folder,
              std::strerror(errno));
  file.buffered = buffered;
  if (caching == FileCaching::kDirect) open_direct(file, O_RDWR);
  ::unlink(file.path.c_str());
  file.path = temporary_file_label(folder);
  return file;
}

OpenFile open_descriptor_again(int descriptor, FileCaching caching) {
  const int flags = fcntl(descriptor, F_GETFL);
  DS_CHECK_AS(IoError, flags >= 0, "file descriptor {}: {}", descriptor, std::strerror(errno));
  const int access = flags & O_ACCMODE;
  OpenFile file;
  file.writable = access != O_RDONLY;
  // The kernel's name for it leads to the file even when it was renamed or has no name any more.
  const std::string name = fmt::format("/proc/self/fd/{}", descriptor);
  const int buffered = open_retrying(name, access);
  DS_CHECK_AS(IoError, buffered >= 0, "cannot open the file behind descriptor {} again: {}; give its name instead",
              descriptor, std::strerror(errno));
  file.buffered = buffered;
  file.path = name;
  if (caching == FileCaching::kDirect) open_direct(file, access);
  std::array<char, PATH_MAX> target = {};
  const ssize_t length = readlink(name.c_str(), target.data(), target.size());
  if (length > 0) file.path.assign(target.data(), static_cast<size_t>(length));
  return file;
}

void close_file(OpenFile& file) noexcept {
  if (file.buffered != kNoFile) ::close(static_cast<int>(file.buffered));
  if (file.direct != kNoFile) ::close(static_cast<int>(file.direct));
  file.buffered = file.direct = kNoFile;
}

void preallocate_file(const OpenFile& file, int64_t begin, int64_t end) {
  const int descriptor = static_cast<int>(file.buffered);
  struct stat before = {};
  DS_CHECK_AS(IoError, fstat(descriptor, &before) == 0, "cannot find out the length of {}: {}", file.path,
              std::strerror(errno));
  if (!S_ISREG(before.st_mode)) return;
  const auto space = disk_space(file.path);
  // Not left to fallocate alone: until it fails, it takes what others on this disk need.
  const int64_t there = begin >= before.st_size ? 0 : int64_t{before.st_blocks} * 512;  // at most, of what is wanted
  const bool hopeless = space && end - begin - there > space->available_bytes;
  int status = hopeless ? -1 : 0;
  int reason = ENOSPC;
  if (!hopeless) {
    do {
      status = fallocate(descriptor, 0, begin, end - begin);
      reason = errno;
    } while (status != 0 && reason == EINTR);
  }
  if (status == 0) return;
  if (reason == EOPNOTSUPP || reason == ENOSYS) {
    if (before.st_size < end) truncate_file(file, end);
    return;
  }
  if (!hopeless) (void)!ftruncate(descriptor, before.st_size);  // gives back what was taken beyond the end
  ds_throw<IoError>(
      "cannot reserve {} bytes for {}: {} ({} bytes are free there); free some space or choose another disk",
      end - begin, file.path, std::strerror(reason), space ? space->available_bytes : 0);
}

void truncate_file(const OpenFile& file, int64_t bytes) {
  int status = 0;
  do {
    status = ftruncate(static_cast<int>(file.buffered), bytes);
  } while (status != 0 && errno == EINTR);
  DS_CHECK_AS(IoError, status == 0, "cannot give {} a length of {} bytes: {}", file.path, bytes, std::strerror(errno));
}

void sync_file(const OpenFile& file) {
  int status = 0;
  do {
    status = fdatasync(static_cast<int>(file.buffered));
  } while (status != 0 && errno == EINTR);
  DS_CHECK_AS(IoError, status == 0, "cannot bring {} to its disk: {}", file.path, std::strerror(errno));
}

int64_t length_of_file(const OpenFile& file) {
  struct stat status = {};
  DS_CHECK_AS(IoError, fstat(static_cast<int>(file.buffered), &status) == 0, "cannot find out the length of {}: {}",
              file.path, std::strerror(errno));
  // A disk's own file says so only in this way; nothing uses the position of our descriptors.
  if (S_ISBLK(status.st_mode)) return std::max<int64_t>(0, lseek(static_cast<int>(file.buffered), 0, SEEK_END));
  return status.st_size;
}

std::unique_ptr<Engine> make_engine(AsyncEngine engine, QueueCore& core) {
  if (engine == AsyncEngine::kIoUring) return make_uring_engine(core);
  return std::make_unique<ThreadsEngine>(core);
}

bool is_passing(int error) {
  return error == EINTR || error == EAGAIN || error == ENOBUFS;
}

bool is_disk_full(int error) {
  return error == ENOSPC || error == EDQUOT;
}

std::string error_text(int error) {
  return std::strerror(error);
}

}  // namespace async_internal

AsyncEngineChoice choose_async_engine(AsyncEngine wanted) {
  const auto [engine, source] = async_internal::asked_engine(wanted);
  DS_CHECK_AS(ConfigError, engine != AsyncEngine::kCompletionPort,
              "{}: completion ports exist on Windows only; use automatic, io_uring or threads", source);
  if (engine == AsyncEngine::kThreads) return {AsyncEngine::kThreads, source + " asks for threads", /*asked=*/true};
  const std::string problem = async_internal::why_not_io_uring();
  if (problem.empty()) return {AsyncEngine::kIoUring, "", /*asked=*/engine == AsyncEngine::kIoUring};
  DS_CHECK_AS(ConfigError, engine == AsyncEngine::kAutomatic, "{}: io_uring cannot be used here: {}; use automatic",
              source, problem);
  return {AsyncEngine::kThreads, problem, /*asked=*/false};
}

}  // namespace deepscale
