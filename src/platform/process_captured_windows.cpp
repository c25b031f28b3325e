#include <array>

#include "base/error.h"
#include "platform/process_internal_windows.h"
#include "platform/random.h"

namespace deepscale {

CapturedStream::CapturedStream(Sink sink)
    : sink_(std::move(sink)),
      came_(CreateEventW(nullptr, TRUE, FALSE, nullptr)),
      stop_(CreateEventW(nullptr, TRUE, FALSE, nullptr)) {
  // Anonymous pipes cannot be read asynchronously, so this is one with a name that nobody else can guess.
  constexpr DWORD kBufferBytes = 64 * 1024;
  const std::wstring name = to_wide("\\\\.\\pipe\\deepscale-" + random_token());
  reader_ =
      Handle(CreateNamedPipeW(name.c_str(), PIPE_ACCESS_INBOUND | FILE_FLAG_OVERLAPPED | FILE_FLAG_FIRST_PIPE_INSTANCE,
                              PIPE_TYPE_BYTE | PIPE_READMODE_BYTE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS, 1,
                              kBufferBytes, kBufferBytes, 0, nullptr));
  DS_CHECK_AS(IoError, reader_, "cannot make a pipe: {}", error_text());
  writer_ = Handle(CreateFileW(name.c_str(), GENERIC_WRITE, 0, nullptr, OPEN_EXISTING, 0, nullptr));
  DS_CHECK_AS(IoError, writer_, "cannot make a pipe: {}", error_text());
}

CapturedStream::~CapturedStream() {
  SetEvent(stop_.get());
  while (thread_.joinable() && !ended_) {
    // The sink may wait for somebody who does not read what we write.
    if (const HANDLE thread = reading_thread_.load()) CancelSynchronousIo(thread);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (thread_.joinable()) thread_.join();
  const Handle owned(reading_thread_.load());
}

void CapturedStream::close_writer_and_read() {
  writer_.reset();
  thread_ = std::thread([this] { read_to_end(); });
}

bool CapturedStream::settled() const {
  // Bytes never wait in the pipe while a read does: they end it.
  return ended_.load() || (waiting_.load() && !HasOverlappedIoCompleted(&read_));
}

void CapturedStream::read_to_end() {
  reading_thread_ = OpenThread(THREAD_TERMINATE, FALSE, GetCurrentThreadId());
  std::array<char, 16384> buffer;
  for (;;) {
    ResetEvent(came_.get());
    read_ = {};
    read_.hEvent = came_.get();
    if (!ReadFile(reader_.get(), buffer.data(), buffer.size(), nullptr, &read_) && GetLastError() != ERROR_IO_PENDING) {
      break;  // all writers are gone
    }
    waiting_ = true;
    HANDLE const either[] = {came_.get(), stop_.get()};
    const bool stopped = WaitForMultipleObjects(2, either, FALSE, INFINITE) != WAIT_OBJECT_0;
    waiting_ = false;
    if (stopped) CancelIoEx(reader_.get(), &read_);
    DWORD got = 0;
    if (!GetOverlappedResult(reader_.get(), &read_, &got, TRUE) || stopped) break;
    if (!sink_({buffer.data(), got})) break;
  }
  reader_.reset();
  ended_ = true;
}

}  // namespace deepscale
