#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "platform/resources.h"
#include "platform/shared_memory.h"

namespace deepscale {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kHugePage = 2 << 20;
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which old headers lack
/// Commits below this are not checked against the machine's free memory: reading that takes longer than they do.
constexpr int64_t kCheckedCommit = 16 << 20;
/// Kept free for everybody else when a large commit is checked.
constexpr int64_t kHeadroom = 64 << 20;

std::string random_name() {
  uint64_t value[2] = {};
  if (getrandom(value, sizeof(value), 0) != sizeof(value)) {
    ds_throw<IoError>("cannot read random bytes for the name of a shared memory object: {}", std::strerror(errno));
  }
  return fmt::format("/deepscale-{:x}-{:016x}{:016x}", getpid(), value[0], value[1]);
}

char* map(int handle, int64_t bytes) {
  // Addresses and offsets must agree modulo the huge page, or no huge page can be mapped: reserve more, then place it.
  const auto length = static_cast<size_t>(bytes);
  const size_t reserved = length + kHugePage;
  void* const room = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* data = MAP_FAILED;
  if (room != MAP_FAILED) {
    char* const begin = static_cast<char*>(room);
    const size_t lead = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    data = mmap(begin + lead, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, handle, 0);
    const size_t used = data == MAP_FAILED ? 0 : length;
    if (lead > 0) munmap(begin, lead);
    munmap(begin + lead + used, reserved - lead - used);
  }
  DS_CHECK_AS(
      IoError, data != MAP_FAILED,
      "cannot map {} bytes of shared memory: {}; raise the address space limit (ulimit -v) or use smaller segments",
      bytes, std::strerror(errno));
  return static_cast<char*>(data);
}

}  // namespace

SharedMemory SharedMemory::create(int64_t bytes, Naming naming) {
  SharedMemory memory;
  memory.bytes_ = (bytes + kPage - 1) / kPage * kPage;
  if (naming == Naming::kAnonymous) {
    memory.handle_ = memfd_create("deepscale", MFD_CLOEXEC);
    DS_CHECK_AS(IoError, memory.handle_ >= 0, "cannot create shared memory (memfd_create): {}", std::strerror(errno));
    memory.token_ = fmt::format("/proc/{}/fd/{}", getpid(), memory.handle_);
  } else {
    memory.name_ = random_name();
    memory.handle_ = shm_open(memory.name_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    DS_CHECK_AS(IoError, memory.handle_ >= 0, "cannot create shared memory {} (shm_open): {}; is /dev/shm writable?",
                memory.name_, std::strerror(errno));
    memory.token_ = "name:" + memory.name_;
  }
  DS_CHECK_AS(IoError, ftruncate(static_cast<int>(memory.handle_), memory.bytes_) == 0,
              "cannot size shared memory to {} bytes: {}; lift the file size limit (ulimit -f) or use smaller segments",
              memory.bytes_, std::strerror(errno));
  memory.data_ = map(static_cast<int>(memory.handle_), memory.bytes_);
  return memory;
}

SharedMemory SharedMemory::open(const std::string& token) {
  constexpr std::string_view kNamePrefix = "name:";
  SharedMemory memory;
  memory.handle_ = token.starts_with(kNamePrefix) ? shm_open(token.c_str() + kNamePrefix.size(), O_RDWR | O_CLOEXEC, 0)
                                                  : ::open(token.c_str(), O_RDWR | O_CLOEXEC);
  DS_CHECK_AS(IoError, memory.handle_ >= 0, "cannot open a peer's shared memory {}: {}", token, std::strerror(errno));
  struct stat status = {};
  DS_CHECK_AS(IoError, fstat(static_cast<int>(memory.handle_), &status) == 0 && status.st_size > 0,
              "cannot use a peer's shared memory {}: it is not a shared memory object", token);
  memory.bytes_ = status.st_size;
  memory.data_ = map(static_cast<int>(memory.handle_), memory.bytes_);
  ::close(static_cast<int>(std::exchange(memory.handle_, -1)));  // the mapping is enough
  return memory;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      handle_(std::exchange(other.handle_, -1)),
      token_(std::move(other.token_)),
      name_(std::exchange(other.name_, {})) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  if (this != &other) {
    close();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    handle_ = std::exchange(other.handle_, -1);
    token_ = std::move(other.token_);
    name_ = std::exchange(other.name_, {});
  }
  return *this;
}

SharedMemory::~SharedMemory() {
  close();
}

void SharedMemory::close() {
  unlink();
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
  if (handle_ >= 0) ::close(static_cast<int>(handle_));
  data_ = nullptr;
  handle_ = -1;
}

void SharedMemory::unlink() {
  if (!name_.empty()) shm_unlink(name_.c_str());
  name_.clear();
}

void SharedMemory::commit(int64_t offset, int64_t bytes) {
  if (bytes <= 0) return;
  if (bytes >= kCheckedCommit) {
    const MemoryFacts facts = memory_facts();
    DS_CHECK_AS(
        IoError, bytes + kHeadroom <= facts.available_bytes,
        "cannot take {} MiB of shared memory: {} MiB of {} MiB are available; use a smaller model, batch or bucket, "
        "more ranks, or raise the memory limit",
        bytes >> 20, facts.available_bytes >> 20, facts.total_bytes >> 20);
  }
  // Huge pages where the system offers them for shared memory: fewer faults here and in every peer. Only for whole
  // ones, so that no more memory is taken than was asked for.
  const int64_t huge_begin = (offset + kHugePage - 1) / kHugePage * kHugePage;
  const int64_t huge_bytes = (offset + bytes) / kHugePage * kHugePage - huge_begin;
  if (huge_bytes > 0) madvise(data_ + huge_begin, static_cast<size_t>(huge_bytes), MADV_HUGEPAGE);
  const auto again = [](auto take) {
    int status = 0;
    do {
      status = take();
    } while (status != 0 && errno == EINTR);
    return status;
  };
  // fallocate() knows nothing of the advice, so faulting in comes first; kernels before 5.14 do not have it.
  int status = again([&] { return madvise(data_ + offset, static_cast<size_t>(bytes), kPopulateWrite); });
  if (status != 0 && errno == EINVAL) {
    status = again([&] { return fallocate(static_cast<int>(handle_), FALLOC_FL_KEEP_SIZE, offset, bytes); });
  }
  DS_CHECK_AS(
      IoError, status == 0,
      "cannot take {} bytes of shared memory: {}; use a smaller model, batch or bucket, more ranks, or raise the "
      "memory limit",
      bytes, std::strerror(errno));
}

void SharedMemory::decommit(int64_t offset, int64_t bytes) {
  if (bytes <= 0) return;
  DS_CHECK_AS(IoError, madvise(data_ + offset, static_cast<size_t>(bytes), MADV_REMOVE) == 0,
              "cannot give back {} bytes of shared memory: {}", bytes, std::strerror(errno));
}

}  // namespace deepscale
