// Overlapped I/O with a completion port. One thread per queue issues the calls and collects what they did, because
// Windows cancels the I/O of a thread that ends, and cached or growing writes block the thread that issues them.
// (Windows 11's IoRing needs newer headers and systems than we ask for, and wine has none.)
#include <io.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "platform/async_file.h"
#include "platform/async_internal.h"
#include "platform/disk_space.h"
#include "platform/random.h"
#include "platform/text_windows.h"
// After windows.h, which it needs.
#include <winternl.h>

namespace deepscale {
namespace async_internal {
namespace {

constexpr int kDiskQuotaExceeded = 1295;  // ERROR_DISK_QUOTA_EXCEEDED, which older headers lack
constexpr ULONG_PTR kFileKey = 1;
constexpr ULONG_PTR kWakeKey = 2;

HANDLE native(NativeFile file) {
  return reinterpret_cast<HANDLE>(file);
}

struct Call {
  OVERLAPPED overlapped = {};  // first: the system's pointer to it is one to the Call
  Block* block = nullptr;
};

class PortEngine final : public Engine {
 public:
  explicit PortEngine(QueueCore& core)
      : core_(core), port_(CreateIoCompletionPort(INVALID_HANDLE_VALUE, nullptr, 0, 1)) {
    DS_CHECK_AS(IoError, static_cast<bool>(port_), "cannot make a completion port for asynchronous files: {}",
                deepscale::error_text());
    calls_.resize(static_cast<size_t>(core.depth()));
    for (Call& call : calls_) free_.push_back(&call);
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& error) {
      ds_throw<IoError>("cannot start a thread for asynchronous files: {}", error.what());
    }
  }

  ~PortEngine() override {
    {
      const auto guard = core_.lock();
      stopping_ = true;
      wake();
    }
    thread_.join();
  }

  void wake() override {
    if (!asleep_) return;
    asleep_ = false;
    PostQueuedCompletionStatus(port_.get(), 0, kWakeKey, nullptr);
  }

  void attach(OpenFile& file) override {
    for (const NativeFile handle : {file.buffered, file.direct}) {
      if (handle == kNoFile) continue;
      DS_CHECK_AS(IoError, CreateIoCompletionPort(native(handle), port_.get(), kFileKey, 0) != nullptr,
                  "cannot use {} with a completion port: {}", file.path, deepscale::error_text());
    }
  }

 private:
  static HANDLE handle_of(const Block& block) {
    const OpenFile& file = *block.transfer->file;
    return native(block.direct ? file.direct : file.buffered);
  }

  /// False when it failed at once and no completion will come; the error is the thread's last one.
  bool start(Block& block) {
    Call& call = *free_.back();
    call.overlapped = {};
    call.overlapped.Offset = static_cast<DWORD>(block.offset);
    call.overlapped.OffsetHigh = static_cast<DWORD>(block.offset >> 32);
    call.block = &block;
    const auto bytes = static_cast<DWORD>(block.bytes);
    const BOOL done = block.transfer->writing
                          ? WriteFile(handle_of(block), block.data, bytes, nullptr, &call.overlapped)
                          : ReadFile(handle_of(block), block.data, bytes, nullptr, &call.overlapped);
    if (!done && GetLastError() != ERROR_IO_PENDING) return false;
    free_.pop_back();
    return true;
  }

  static int64_t failure(const Block& block, DWORD error) {
    if (!block.transfer->writing && error == ERROR_HANDLE_EOF) return 0;
    return -static_cast<int64_t>(error);
  }

  void report(Call& call) {
    Block& block = *call.block;
    DWORD moved = 0;
    const BOOL done = GetOverlappedResult(handle_of(block), &call.overlapped, &moved, FALSE);
    const int64_t result = done ? static_cast<int64_t>(moved) : failure(block, GetLastError());
    free_.push_back(&call);
    core_.finished(block, result);
  }

  /// Starts blocks; returns how long to wait for completions at most.
  DWORD start_blocks(std::unique_lock<std::mutex>& guard) {
    while (Block* const block = core_.take()) {
      guard.unlock();  // a call may block
      const bool started = start(*block);
      const DWORD error = started ? ERROR_SUCCESS : GetLastError();
      guard.lock();
      if (started) continue;
      core_.finished(*block, failure(*block, error));
      if (is_passing(static_cast<int>(error))) return 1;  // let what is under way give resources back
    }
    return INFINITE;
  }

  void run() {
    std::array<OVERLAPPED_ENTRY, 64> entries = {};
    auto guard = core_.lock();
    while (!stopping_) {
      const DWORD patience = start_blocks(guard);
      if (stopping_) break;  // set while a call was made: no completion will wake this thread
      asleep_ = true;
      guard.unlock();
      ULONG count = 0;
      const BOOL some = GetQueuedCompletionStatusEx(port_.get(), entries.data(), static_cast<ULONG>(entries.size()),
                                                    &count, patience, FALSE);
      guard.lock();
      asleep_ = false;
      for (ULONG i = 0; some && i < count; ++i) {
        if (entries[i].lpCompletionKey == kFileKey) report(*reinterpret_cast<Call*>(entries[i].lpOverlapped));
      }
    }
  }

  QueueCore& core_;
  Handle port_;
  std::vector<Call> calls_;
  std::vector<Call*> free_;  // these two belong to the thread
  bool asleep_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

HANDLE open_handle(const OpenFile& file, DWORD disposition, DWORD flags) {
  const DWORD access = file.writable ? GENERIC_READ | GENERIC_WRITE : GENERIC_READ;
  return CreateFileW(wide_path(file.path).c_str(), (flags & FILE_FLAG_DELETE_ON_CLOSE) != 0 ? access | DELETE : access,
                     FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, disposition,
                     FILE_FLAG_OVERLAPPED | flags, nullptr);
}

void take_direct(OpenFile& file, HANDLE direct) {
  if (direct == INVALID_HANDLE_VALUE) return;
  file.direct = reinterpret_cast<NativeFile>(direct);
  file.alignment = file.memory_alignment = 4096;  // no disk has larger sectors
}

void open_direct(OpenFile& file) {
  take_direct(file, open_handle(file, OPEN_EXISTING, FILE_FLAG_NO_BUFFERING));
}

HANDLE handle_of_descriptor(int descriptor) {
  if (descriptor < 0) return INVALID_HANDLE_VALUE;
#ifdef _UCRT  // which takes a number that is not open for a mistake that ends the process; older ones return -1
  const auto ignore = [](const wchar_t*, const wchar_t*, const wchar_t*, unsigned, uintptr_t) {};
  const _invalid_parameter_handler before = _set_thread_local_invalid_parameter_handler(ignore);
  const intptr_t handle = _get_osfhandle(descriptor);
  _set_thread_local_invalid_parameter_handler(before);
#else
  const intptr_t handle = _get_osfhandle(descriptor);
#endif
  return reinterpret_cast<HANDLE>(handle);
}

bool may_write(HANDLE handle) {
  PUBLIC_OBJECT_BASIC_INFORMATION facts = {};
  return NtQueryObject(handle, ObjectBasicInformation, &facts, sizeof(facts), nullptr) >= 0 &&
         (facts.GrantedAccess & FILE_WRITE_DATA) != 0;
}

std::optional<std::string> name_of_handle(HANDLE handle) {
  std::wstring name(32768, L'\0');
  const DWORD length = GetFinalPathNameByHandleW(handle, name.data(), static_cast<DWORD>(name.size()), 0);
  if (length == 0 || length >= name.size()) return std::nullopt;
  name.resize(length);
  return to_utf8(name.starts_with(L"\\\\?\\") ? std::wstring_view(name).substr(4) : std::wstring_view(name));
}

void set_length(const OpenFile& file, int64_t bytes) {
  FILE_END_OF_FILE_INFO end = {};
  end.EndOfFile.QuadPart = bytes;
  const BOOL done = SetFileInformationByHandle(native(file.buffered), FileEndOfFileInfo, &end, sizeof(end));
  DS_CHECK_AS(IoError, done, "cannot give {} a length of {} bytes: {}", file.path, bytes, deepscale::error_text());
}

}  // namespace

OpenFile open_file(const std::string& path, FileMode mode, FileCaching caching) {
  OpenFile file;
  file.path = path;
  file.writable = mode != FileMode::kRead;
  const DWORD disposition = mode == FileMode::kRead        ? OPEN_EXISTING
                            : mode == FileMode::kReadWrite ? OPEN_ALWAYS
                                                           : CREATE_ALWAYS;
  const HANDLE buffered = open_handle(file, disposition, FILE_ATTRIBUTE_NORMAL);
  DS_CHECK_AS(IoError, buffered != INVALID_HANDLE_VALUE, "cannot open {} for {}: {}", path,
              file.writable ? "writing" : "reading", deepscale::error_text());
  file.buffered = reinterpret_cast<NativeFile>(buffered);
  if (caching == FileCaching::kDirect) open_direct(file);
  return file;
}

OpenFile open_temporary_file(const std::string& folder, FileCaching caching) {
  const DWORD kind = GetFileAttributesW(wide_path(folder).c_str());
  DS_CHECK_AS(IoError, kind == INVALID_FILE_ATTRIBUTES || (kind & FILE_ATTRIBUTE_DIRECTORY) != 0,
              "cannot make a temporary file in {}: it is a file; name a folder that can be written", folder);
  OpenFile file;
  file.path = folder + "/deepscale_" + random_token() + ".tmp";
  file.writable = true;
  const HANDLE buffered = open_handle(file, CREATE_NEW, FILE_ATTRIBUTE_HIDDEN | FILE_FLAG_DELETE_ON_CLOSE);
  DS_CHECK_AS(IoError, buffered != INVALID_HANDLE_VALUE,
              "cannot make a temporary file in {}: {}; name a folder that exists and can be written", folder,
              deepscale::error_text());
  file.buffered = reinterpret_cast<NativeFile>(buffered);
  if (caching == FileCaching::kDirect) open_direct(file);
  file.path = temporary_file_label(folder);
  return file;
}

OpenFile open_descriptor_again(int descriptor, FileCaching caching) {
  const HANDLE given = handle_of_descriptor(descriptor);
  DS_CHECK_AS(IoError, given != INVALID_HANDLE_VALUE, "file descriptor {}: it is not open", descriptor);
  OpenFile file;
  const auto reopen = [&](DWORD flags) {
    const DWORD access = file.writable ? GENERIC_READ | GENERIC_WRITE : GENERIC_READ;
    return ReOpenFile(given, access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                      FILE_FLAG_OVERLAPPED | flags);
  };
  file.writable = may_write(given);  // reopening gives whatever the file's owner allows
  const HANDLE buffered = reopen(0);
  DS_CHECK_AS(IoError, buffered != INVALID_HANDLE_VALUE,
              "cannot open the file behind descriptor {} again: {}; give its name instead", descriptor,
              deepscale::error_text());
  file.buffered = reinterpret_cast<NativeFile>(buffered);
  file.path = name_of_handle(given).value_or(fmt::format("descriptor {}", descriptor));
  if (caching == FileCaching::kDirect) take_direct(file, reopen(FILE_FLAG_NO_BUFFERING));
  return file;
}

void close_file(OpenFile& file) noexcept {
  for (NativeFile* const handle : {&file.buffered, &file.direct}) {
    if (*handle != kNoFile) CloseHandle(native(*handle));
    *handle = kNoFile;
  }
}

// Files have no holes here.
void preallocate_file(const OpenFile& file, int64_t /*begin*/, int64_t end) {
  const int64_t length = length_of_file(file);
  if (end <= length) return;  // and an allocation below the length would cut the file
  const auto space = disk_space(file.path);
  bool reserved = !space || end - length <= space->available_bytes;
  DWORD reason = ERROR_DISK_FULL;
  if (reserved) {
    FILE_ALLOCATION_INFO allocation = {};
    allocation.AllocationSize.QuadPart = end;
    reserved = SetFileInformationByHandle(native(file.buffered), FileAllocationInfo, &allocation, sizeof(allocation));
    reason = GetLastError();
  }
  // Any failure but a full disk: a file system without reservations.
  DS_CHECK_AS(IoError, reserved || !is_disk_full(static_cast<int>(reason)),
              "cannot reserve {} bytes for {}: {} ({} bytes are free there); free some space or choose another disk",
              end, file.path, deepscale::error_text(reason), space ? space->available_bytes : 0);
  set_length(file, end);
}

void truncate_file(const OpenFile& file, int64_t bytes) {
  set_length(file, bytes);
}

void sync_file(const OpenFile& file) {
  DS_CHECK_AS(IoError, FlushFileBuffers(native(file.buffered)), "cannot bring {} to its disk: {}", file.path,
              deepscale::error_text());
}

int64_t length_of_file(const OpenFile& file) {
  LARGE_INTEGER length = {};
  DS_CHECK_AS(IoError, GetFileSizeEx(native(file.buffered), &length), "cannot find out the length of {}: {}", file.path,
              deepscale::error_text());
  return length.QuadPart;
}

std::unique_ptr<Engine> make_engine(AsyncEngine, QueueCore& core) {
  return std::make_unique<PortEngine>(core);
}

bool is_passing(int error) {
  return error == ERROR_OPERATION_ABORTED || error == ERROR_NO_SYSTEM_RESOURCES || error == ERROR_WORKING_SET_QUOTA ||
         error == ERROR_NOT_ENOUGH_QUOTA || error == ERROR_INVALID_USER_BUFFER;
}

bool is_disk_full(int error) {
  return error == ERROR_DISK_FULL || error == ERROR_HANDLE_DISK_FULL || error == kDiskQuotaExceeded;
}

std::string error_text(int error) {
  return deepscale::error_text(static_cast<DWORD>(error));
}

}  // namespace async_internal

AsyncEngineChoice choose_async_engine(AsyncEngine wanted) {
  const auto [engine, source] = async_internal::asked_engine(wanted);
  DS_CHECK_AS(ConfigError, engine == AsyncEngine::kAutomatic || engine == AsyncEngine::kCompletionPort,
              "{}: {} exists on Linux only; use automatic or completion_port", source, async_engine_name(engine));
  return {AsyncEngine::kCompletionPort, ""};
}

}  // namespace deepscale
