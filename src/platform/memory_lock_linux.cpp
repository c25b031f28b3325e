#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "platform/memory_lock.h"
#include "platform/text_reader.h"

namespace deepscale {
namespace {

constexpr int kCapIpcLock = 14;  // capabilities(7)

/// The value behind "name:" in /proc/self/status, in the given base; 0 when there is none.
uint64_t status_number(const std::string& name, int base) {
  std::istringstream lines(read_text_file("/proc/self/status").value_or(""));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(name + ":")) return std::strtoull(line.c_str() + name.size() + 1, nullptr, base);
  }
  return 0;
}

bool lock_pages(void* data, int64_t bytes) {
  const auto length = static_cast<size_t>(bytes);
  if (mlock(data, length) == 0) return true;
  rlimit limit = {};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return false;
  const int reason = errno;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_MEMLOCK, &limit) == 0) return mlock(data, length) == 0;
  errno = reason;
  return false;
}

}  // namespace

MemoryLock::MemoryLock(void* data, int64_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  DS_CHECK_AS(
      IoError, bytes > 0 && data != nullptr && reinterpret_cast<uintptr_t>(data) % page == 0,
      "cannot lock {} bytes of memory at {}: an address on a page boundary ({} bytes) and at least one byte are "
      "needed",
      bytes, data, page);
  if (!lock_pages(data, bytes)) {
    const int reason = errno;
    const MemoryLockFacts facts = memory_lock_facts();
    const bool by_limit = facts.limit_bytes && bytes + facts.locked_bytes > *facts.limit_bytes;
    DS_CHECK_AS(IoError, !by_limit, "cannot lock {} bytes of memory: {} allows {} bytes, and {} are locked already; {}",
                bytes, facts.limit_name, *facts.limit_bytes, facts.locked_bytes, facts.how_to_raise);
    ds_throw<IoError>("cannot lock {} bytes of memory: {}; lock less, or free memory", bytes, std::strerror(reason));
  }
  data_ = data;
  bytes_ = bytes;
}

void MemoryLock::unlock() noexcept {
  if (data_ != nullptr) munlock(data_, static_cast<size_t>(bytes_));
  data_ = nullptr;
  bytes_ = 0;
}

MemoryLockFacts memory_lock_facts() {
  MemoryLockFacts facts;
  facts.limit_name = "RLIMIT_MEMLOCK";
  facts.how_to_raise =
      "raise it with 'ulimit -l unlimited' as root before the start, a line '* - memlock unlimited' in "
      "/etc/security/limits.conf, LimitMEMLOCK=infinity of a systemd unit, or --ulimit memlock=-1 of a container";
  facts.locked_bytes = static_cast<int64_t>(status_number("VmLck", 10)) * 1024;
  rlimit limit = {};
  const bool limited = getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_max != RLIM_INFINITY;
  const bool privileged = (status_number("CapEff", 16) >> kCapIpcLock & 1) != 0;
  if (limited && !privileged) facts.limit_bytes = static_cast<int64_t>(limit.rlim_max);
  return facts;
}

MemoryLock::MemoryLock(MemoryLock&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryLock& MemoryLock::operator=(MemoryLock&& other) noexcept {
  if (this != &other) {
    unlock();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

MemoryLock::~MemoryLock() {
  unlock();
}

}  // namespace deepscale
