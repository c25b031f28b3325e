// A token is "section:<bytes>:<name>". Both namings are sections with a name that nobody can guess and that only this
// user may open; a name is gone when the last handle to it is closed, so only the creator keeps one, and unlink()
// closes that. Views and what is in them need no handle.
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "platform/random.h"
#include "platform/resources.h"
#include "platform/shared_memory.h"
#include "platform/text_windows.h"

namespace deepscale {
namespace {

constexpr int64_t kPage = 4096;
constexpr std::string_view kPrefix = "section:";
/// As on Linux: commits below this are not checked against the machine's free memory.
constexpr int64_t kCheckedCommit = 16 << 20;
constexpr int64_t kHeadroom = 64 << 20;

HANDLE handle_of(int64_t value) {
  return reinterpret_cast<HANDLE>(static_cast<intptr_t>(value));
}

char* map(HANDLE section, int64_t bytes) {
  void* const data = MapViewOfFile(section, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, static_cast<size_t>(bytes));
  DS_CHECK_AS(IoError, data != nullptr, "cannot map {} bytes of shared memory: {}; use smaller segments", bytes,
              error_text());
  return static_cast<char*>(data);
}

}  // namespace

SharedMemory SharedMemory::create(int64_t bytes, Naming naming) {
  SharedMemory memory;
  memory.bytes_ = (bytes + kPage - 1) / kPage * kPage;
  const std::string name = fmt::format("Local\\deepscale-{:x}-{}", GetCurrentProcessId(), random_token());
  const std::shared_ptr<void> descriptor = user_only_descriptor();
  SECURITY_ATTRIBUTES attributes = {sizeof(attributes), descriptor.get(), FALSE};
  HANDLE const section =
      CreateFileMappingW(INVALID_HANDLE_VALUE, descriptor != nullptr ? &attributes : nullptr,
                         PAGE_READWRITE | SEC_RESERVE, static_cast<DWORD>(static_cast<uint64_t>(memory.bytes_) >> 32),
                         static_cast<DWORD>(memory.bytes_ & 0xFFFFFFFF), to_wide(name).c_str());
  DS_CHECK_AS(IoError, section != nullptr, "cannot create {} bytes of shared memory: {}; use smaller segments",
              memory.bytes_, error_text());
  memory.handle_ = reinterpret_cast<intptr_t>(section);
  memory.data_ = map(section, memory.bytes_);
  memory.token_ = fmt::format("{}{}:{}", kPrefix, memory.bytes_, name);
  if (naming == Naming::kNamed) memory.name_ = name;
  return memory;
}

SharedMemory SharedMemory::open(const std::string& token) {
  SharedMemory memory;
  const size_t colon = token.find(':', kPrefix.size());
  const bool formed =
      token.starts_with(kPrefix) && colon != std::string::npos &&
      std::from_chars(token.data() + kPrefix.size(), token.data() + colon, memory.bytes_).ptr == token.data() + colon &&
      memory.bytes_ > 0;
  DS_CHECK_AS(IoError, formed, "cannot use a peer's shared memory {}: it is not a shared memory object", token);
  const Handle section(OpenFileMappingW(FILE_MAP_READ | FILE_MAP_WRITE, FALSE,
                                        to_wide(std::string_view(token).substr(colon + 1)).c_str()));
  DS_CHECK_AS(IoError, section, "cannot open a peer's shared memory {}: {}", token, error_text());
  memory.data_ = map(section.get(), memory.bytes_);
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
  if (data_ != nullptr) UnmapViewOfFile(std::exchange(data_, nullptr));
  if (handle_ != -1) CloseHandle(handle_of(std::exchange(handle_, -1)));
}

void SharedMemory::unlink() {
  if (!name_.empty() && handle_ != -1) CloseHandle(handle_of(std::exchange(handle_, -1)));
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
  DS_CHECK_AS(IoError, VirtualAlloc(data_ + offset, static_cast<size_t>(bytes), MEM_COMMIT, PAGE_READWRITE) != nullptr,
              "cannot take {} bytes of shared memory: {}; use a smaller model, batch or bucket, more ranks, or raise "
              "the memory "
              "limit (enlarge the page file)",
              bytes, error_text());
}

void SharedMemory::decommit(int64_t offset, int64_t bytes) {
  if (bytes <= 0) return;
  // Windows does not take single pages of a section back. Zeroed pages leave main memory when it is scarce, and at once
  // this process's working set (unlocking what is not locked does that, and reports it as an error).
  std::memset(data_ + offset, 0, static_cast<size_t>(bytes));
  VirtualUnlock(data_ + offset, static_cast<size_t>(bytes));
}

}  // namespace deepscale
