// Asynchronous files: reads and writes of (offset, bytes, buffer) that go on while the caller computes; what offloading
// to NVMe and fast checkpoints are built on.
//
//   AsyncFileQueue queue({.depth = 32, .block_bytes = 1 << 20});
//   AsyncFile file = queue.open(path, FileMode::kCreate, FileCaching::kDirect);
//   file.preallocate(bytes);
//   FileTransfer transfer = file.write(/*offset=*/0, buffer.data(), bytes);
//   ...                                            // compute
//   transfer.wait();                               // throws what went wrong
//
// A transfer is cut into blocks of at most block_bytes; at most `depth` blocks of a queue are under way at once, the
// next ones start by themselves, in the order of submission. Nothing has to be polled for progress: a thread of the
// queue does the work (its own, so that computing threads are not interrupted by completions).
//
// Engines: io_uring where the kernel allows it, else a pool of threads with pread and pwrite (containers often forbid
// io_uring); a completion port with overlapped I/O on Windows. DEEPSCALE_ASYNC_IO or AsyncFileOptions::engine choose.
//
// Alignment. A file opened for direct access moves bytes between disk and buffer without the page cache. The hardware
// wants whole sectors for that, so a transfer is split: the part whose file offsets are multiples of
// AsyncFile::alignment() and whose buffer addresses are multiples of memory_alignment() goes directly; a head or tail
// of a page that is not whole goes through a second, buffered descriptor of the same file, and so does all of a
// transfer whose buffer cannot be aligned at the same time as its offset. Any offset, length and address is therefore
// correct, and page-aligned ones (PrivateMemory) are fast. Since direct parts are whole pages, transfers that do not
// overlap never touch one page both ways; the system keeps the two descriptors coherent for transfers one after the
// other.
//
// Safety. A buffer must stay in place until its transfer is done; ~FileTransfer sees to that: it drops the blocks that
// have not started, and waits for those that have. Nothing is ever left under way in a buffer that may be freed.
// Processes. A queue works in the process that made it. In one that is forked from it, transfers throw IoError, those
// under way too, and whatever the queue has is dropped there without a wait; the parent's go on.
// Threads: all members may be called from any thread; a FileTransfer is used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace deepscale {

namespace async_internal {
class QueueCore;
struct OpenFile;
struct Transfer;
}  // namespace async_internal

enum class AsyncEngine : uint8_t {
  kAutomatic,       ///< DEEPSCALE_ASYNC_IO, else the best that works here
  kIoUring,         ///< Linux
  kThreads,         ///< Linux
  kCompletionPort,  ///< Windows
};
/// "automatic", "io_uring", "threads", "completion_port".
const char* async_engine_name(AsyncEngine engine);

struct AsyncEngineChoice {
  AsyncEngine engine = AsyncEngine::kAutomatic;  ///< never kAutomatic in an answer
  std::string reason;                            ///< why not io_uring; empty when it is, or on Windows
  bool asked = false;                            ///< by name: nobody has to be told
};
/// What a queue would use. Throws ConfigError for an unknown name in DEEPSCALE_ASYNC_IO, and for an engine that was
/// asked for by name and does not work here.
AsyncEngineChoice choose_async_engine(AsyncEngine wanted = AsyncEngine::kAutomatic);

struct AsyncFileOptions {
  int depth = 32;                 ///< blocks under way at once, 1..4096
  int64_t block_bytes = 1 << 20;  ///< a multiple of 4096, at most 1 GiB
  AsyncEngine engine = AsyncEngine::kAutomatic;
};

enum class FileMode : uint8_t {
  kRead,       ///< must exist
  kReadWrite,  ///< made when missing, kept when not
  kCreate,     ///< made when missing, emptied when not; read and write
};

enum class FileCaching : uint8_t {
  kBuffered,  ///< through the page cache
  kDirect,    ///< past it; buffered where the file system cannot (AsyncFile::direct says)
};

/// One read or write under way.
class FileTransfer {
 public:
  FileTransfer(FileTransfer&&) noexcept;
  FileTransfer& operator=(FileTransfer&&) noexcept;
  /// Cancels what has not started and waits for the rest. Errors are lost, so wait() first.
  ~FileTransfer();

  /// Whether it is over, well or not. Does not wait.
  [[nodiscard]] bool done() const;
  /// Returns when every byte is read or written. Throws IoError with file, offset, bytes and the system's reason:
  /// reading past the end of the file, a full disk, a device error, a cancelled transfer. May be called again.
  void wait();
  /// Drops the blocks that have not started and waits for those that have; wait() then throws unless all was done.
  void cancel();

 private:
  friend class AsyncFile;
  FileTransfer(std::shared_ptr<async_internal::QueueCore> core, std::unique_ptr<async_internal::Transfer> transfer);
  void finish() noexcept;

  std::shared_ptr<async_internal::QueueCore> core_;
  std::unique_ptr<async_internal::Transfer> transfer_;
};

/// An open file of one queue; copies share it, the last one (or the last transfer) closes it.
class AsyncFile {
 public:
  /// Reads exactly `bytes`; the end of the file before that is an error. Throws IoError for negative numbers, a missing
  /// buffer and a closed queue; all else is reported by FileTransfer::wait.
  [[nodiscard]] FileTransfer read(int64_t offset, void* data, int64_t bytes) const;
  /// Writes exactly `bytes`, growing the file as needed (preallocate: growing is slow). In the file when wait()
  /// returned, on the disk after sync(). Throws as read, and IoError when the file was opened with kRead.
  [[nodiscard]] FileTransfer write(int64_t offset, const void* data, int64_t bytes) const;

  /// Takes disk space for the bytes from `begin` to `end`, nothing for a hole before them, and makes the file at least
  /// `end` long. Throws IoError naming what is missing when the disk is full. A file system that cannot reserve space
  /// only gets the length, a device stays as it is.
  void preallocate(int64_t end, int64_t begin = 0) const;
  /// Cuts or extends (with zeros, without disk space) to `bytes`. Requires: no transfer of the part cut off.
  void truncate(int64_t bytes) const;
  /// Returns when everything written is on the disk. Throws IoError.
  void sync() const;

  [[nodiscard]] int64_t bytes() const;  ///< its length now
  [[nodiscard]] const std::string& path() const;
  /// Whether aligned parts go past the page cache.
  [[nodiscard]] bool direct() const;
  /// File offsets and lengths that are multiples of this go directly: the page size, at least 4096. 1 when !direct().
  [[nodiscard]] int64_t alignment() const;
  /// The same for buffer addresses: the device's, 512 or 4096 as a rule. 1 when !direct().
  [[nodiscard]] int64_t memory_alignment() const;

 private:
  friend class AsyncFileQueue;
  AsyncFile(std::shared_ptr<async_internal::QueueCore> core, std::shared_ptr<async_internal::OpenFile> file);
  [[nodiscard]] FileTransfer submit(bool writing, int64_t offset, char* data, int64_t bytes) const;

  std::shared_ptr<async_internal::QueueCore> core_;
  std::shared_ptr<async_internal::OpenFile> file_;
};

/// Smaller buffers gain too little from being registered for one of the few places that a queue has for them.
inline constexpr int64_t kSmallestPinnedBytes = 1 << 20;

/// Memory that the kernel has pinned and mapped for one queue, which saves that work for every block inside it. End it
/// before the memory is given back.
class BufferRegistration {
 public:
  BufferRegistration(BufferRegistration&&) noexcept;
  BufferRegistration& operator=(BufferRegistration&&) noexcept;
  ~BufferRegistration();

  /// False when the engine has no such thing or the system refuses; transfers then work the ordinary way.
  [[nodiscard]] bool active() const { return reason_.empty(); }
  [[nodiscard]] const std::string& reason() const { return reason_; }  ///< why not

 private:
  friend class AsyncFileQueue;
  BufferRegistration(std::shared_ptr<async_internal::QueueCore> core, char* data, std::string reason);
  void end() noexcept;

  std::shared_ptr<async_internal::QueueCore> core_;
  char* data_;
  std::string reason_;
};

class AsyncFileQueue {
 public:
  /// Throws ConfigError for options out of range or an engine that does not work here, IoError when the system has no
  /// threads or descriptors left.
  explicit AsyncFileQueue(const AsyncFileOptions& options = {});
  AsyncFileQueue(const AsyncFileQueue&) = delete;
  AsyncFileQueue& operator=(const AsyncFileQueue&) = delete;
  /// Transfers that are not done end with an error; waits for blocks under way. Files may outlive the queue.
  ~AsyncFileQueue();

  /// Throws IoError naming the file and the system's reason.
  [[nodiscard]] AsyncFile open(const std::string& path, FileMode mode, FileCaching caching) const;
  /// An empty file in `folder` for reading and writing that is gone when its last user is, however that ends: on Linux
  /// it loses its name before this returns, so that nobody can delete it or find it; on Windows the system deletes it
  /// with its last handle. Throws IoError for a folder that is missing, no folder, or not to be written; what it says
  /// about the file calls it "FOLDER/(temporary file)".
  [[nodiscard]] AsyncFile open_temporary(const std::string& folder, FileCaching caching) const;
  /// The file behind a descriptor of the C library (open, os.open), with the access that it was opened with; through
  /// descriptors of this queue's own: the caller's may be closed at once, its position does not matter, and whether it
  /// has O_DIRECT neither. Throws IoError when it is not open, or the system does not let its file be opened again.
  [[nodiscard]] AsyncFile open_descriptor(int descriptor, FileCaching caching) const;
  /// Pins [data, data + bytes) for this queue. Never throws for a system that refuses: see BufferRegistration::active.
  /// Requires: not registered already. On Linux this counts against RLIMIT_MEMLOCK (memory_lock.h).
  [[nodiscard]] BufferRegistration register_buffer(void* data, int64_t bytes) const;

  /// The engine in use, and why not io_uring.
  [[nodiscard]] const AsyncEngineChoice& engine() const { return engine_; }

 private:
  AsyncEngineChoice engine_;
  std::shared_ptr<async_internal::QueueCore> core_;
};

}  // namespace deepscale
