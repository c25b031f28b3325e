#include <utility>

#include "base/error.h"
#include "platform/memory_lock.h"
#include "platform/text_windows.h"

namespace deepscale {
namespace {

/// Makes room for `bytes` more locked bytes in the working set, whose minimum bounds what may be locked.
bool grow_working_set(int64_t bytes) {
  constexpr SIZE_T kSlack = 1 << 20;  // for the pages that a lock needs beside its own
  SIZE_T smallest = 0;
  SIZE_T largest = 0;
  if (!GetProcessWorkingSetSize(GetCurrentProcess(), &smallest, &largest)) return false;
  const SIZE_T more = static_cast<SIZE_T>(bytes) + kSlack;
  return SetProcessWorkingSetSize(GetCurrentProcess(), smallest + more, largest + more) != 0;
}

bool lock_pages(void* data, int64_t bytes) {
  constexpr int kAttempts = 4;  // other threads may use up what was made room for
  for (int attempt = 0;; ++attempt) {
    if (VirtualLock(data, static_cast<SIZE_T>(bytes))) return true;
    const DWORD reason = GetLastError();
    if (reason != ERROR_WORKING_SET_QUOTA || attempt == kAttempts || !grow_working_set(bytes)) {
      SetLastError(reason);
      return false;
    }
  }
}

}  // namespace

MemoryLock::MemoryLock(void* data, int64_t bytes) {
  SYSTEM_INFO system = {};
  GetSystemInfo(&system);
  DS_CHECK_AS(
      IoError, bytes > 0 && data != nullptr && reinterpret_cast<uintptr_t>(data) % system.dwPageSize == 0,
      "cannot lock {} bytes of memory at {}: an address on a page boundary ({} bytes) and at least one byte are "
      "needed",
      bytes, data, system.dwPageSize);
  if (!lock_pages(data, bytes)) {
    const DWORD reason = GetLastError();
    const MemoryLockFacts facts = memory_lock_facts();
    DS_CHECK_AS(IoError, reason != ERROR_WORKING_SET_QUOTA, "cannot lock {} bytes of memory: the {} {}; {}", bytes,
                facts.limit_name,
                facts.limit_bytes ? fmt::format("is limited to {} bytes", *facts.limit_bytes) : "cannot grow enough",
                facts.how_to_raise);
    ds_throw<IoError>("cannot lock {} bytes of memory: {}; lock less, or free memory", bytes, error_text(reason));
  }
  data_ = data;
  bytes_ = bytes;
}

void MemoryLock::unlock() noexcept {
  if (data_ != nullptr) VirtualUnlock(data_, static_cast<SIZE_T>(bytes_));
  data_ = nullptr;
  bytes_ = 0;
}

MemoryLockFacts memory_lock_facts() {
  MemoryLockFacts facts;
  facts.limit_name = "working set";
  facts.how_to_raise =
      "raise the working-set limit of the job that this process runs in, or give the user the right "
      "\"Increase a process working set\" (SeIncreaseWorkingSetPrivilege)";
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION job = {};
  if (QueryInformationJobObject(nullptr, JobObjectExtendedLimitInformation, &job, sizeof(job), nullptr) &&
      (job.BasicLimitInformation.LimitFlags & JOB_OBJECT_LIMIT_WORKINGSET) != 0) {
    facts.limit_bytes = static_cast<int64_t>(job.BasicLimitInformation.MaximumWorkingSetSize);
  }
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
