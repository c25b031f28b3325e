// What the parts of async_file share: the queue that hands out blocks, and the interface of an engine that moves them.
// Engines pull: their threads lock the queue, take() blocks, move bytes without the lock, and report with finished().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "platform/async_file.h"
#include "platform/resources.h"

namespace deepscale::async_internal {

/// A system handle: file descriptor or HANDLE.
using NativeFile = intptr_t;
inline constexpr NativeFile kNoFile = -1;

struct OpenFile {
  std::string path;
  bool writable = false;
  NativeFile buffered = kNoFile;
  NativeFile direct = kNoFile;  ///< kNoFile: buffered access only
  int64_t alignment = 1;        ///< of offsets and lengths for `direct`
  int64_t memory_alignment = 1;
  int slot = -1;  ///< the engine's; -1: not registered
};

struct Transfer {
  bool writing = false;
  std::shared_ptr<OpenFile> file;
  int64_t offset = 0;
  char* data = nullptr;
  int64_t bytes = 0;
  int64_t started = 0;     ///< bytes given to blocks, or `bytes` when no more shall start
  int under_way = 0;       ///< blocks
  std::string error;       ///< read it only when done
  std::atomic<bool> done;  ///< set last: the queue touches the transfer no more
};

/// A part of a transfer that one system call moves.
struct Block {
  Transfer* transfer = nullptr;
  int64_t offset = 0;
  char* data = nullptr;
  int64_t bytes = 0;
  bool direct = false;
  int attempts = 0;
};

/// The next part of (offset, address, bytes), bytes > 0, as async_file.h's alignment rules want it.
struct Piece {
  int64_t bytes = 0;
  bool direct = false;
};
Piece next_piece(const OpenFile& file, int64_t block_bytes, int64_t offset, uintptr_t address, int64_t bytes);

class Engine {
 public:
  virtual ~Engine() = default;  ///< after the queue has stopped: no block is under way; ends the threads
  /// There is something to take(). Called with the queue's lock held.
  virtual void wake() = 0;
  /// A file was opened for, or is about to leave, this engine. Without the lock. attach throws IoError when the engine
  /// cannot work with the file; detach comes nevertheless.
  virtual void attach(OpenFile&) {}
  virtual void detach(OpenFile&) {}
  /// Returns why not; empty: registered.
  virtual std::string register_buffer(char* data, int64_t bytes);
  virtual void unregister_buffer(char*) {}
};

class QueueCore {
 public:
  QueueCore(int depth, int64_t block_bytes) : block_bytes_(block_bytes), blocks_(static_cast<size_t>(depth)) {
    for (Block& block : blocks_) free_.push_back(&block);
  }

  /// Once, before anything is submitted.
  void use(std::unique_ptr<Engine> engine) { engine_ = std::move(engine); }
  /// Ends all transfers and the engine. In a process forked from the one that made the queue, whose threads are not
  /// there: keeps the core (self) and its engine for ever, because nothing of them can be ended.
  void stop(const std::shared_ptr<QueueCore>& self);

  // In a process forked from the one that made the queue, whose threads are not there, submit throws IoError, and a
  // transfer that was under way in the moment of the fork is over with that error.
  void submit(Transfer& transfer);
  [[nodiscard]] bool is_over(Transfer& transfer);
  void wait(Transfer& transfer);
  void cancel(Transfer& transfer);
  std::shared_ptr<OpenFile> adopt(std::shared_ptr<OpenFile> file, const std::shared_ptr<QueueCore>& self);
  std::string register_buffer(char* data, int64_t bytes);
  void unregister_buffer(char* data);

  // For engines.
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
  /// The next block to move, or nullptr: nothing to do, or enough under way. Requires: the lock.
  [[nodiscard]] Block* take();
  /// `result`: bytes moved, or minus the system's error number. Short moves and passing failures make the block
  /// come back from take(). Requires: the lock.
  void finished(Block& block, int64_t result);
  [[nodiscard]] int64_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] int depth() const { return static_cast<int>(blocks_.size()); }

 private:
  [[nodiscard]] bool foreign() const;  ///< this process was forked from the one that made the queue
  static std::string foreign_error(const Transfer& transfer);
  static void abandon(Transfer& transfer);
  void drop_rest(Transfer& transfer, std::string error);
  void settle(Transfer& transfer);

  const int64_t block_bytes_;
  const int64_t process_ = this_process_id();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Block> blocks_;
  std::vector<Block*> free_;
  std::deque<Block*> again_;       // to be moved (further) before anything new
  std::deque<Transfer*> waiting_;  // with bytes that no block has yet
  bool stopped_ = false;
  std::mutex engine_mutex_;  // guards the pointer against stop() while files attach and detach
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<QueueCore> self_;  // see stop()
};

/// The engine that was asked for by the caller or else by DEEPSCALE_ASYNC_IO, and which of the two it was.
/// Throws ConfigError for an unknown name.
struct AskedEngine {
  AsyncEngine engine = AsyncEngine::kAutomatic;
  std::string source;
};
AskedEngine asked_engine(AsyncEngine wanted);

// Per system.

/// Opens; throws IoError.
OpenFile open_file(const std::string& path, FileMode mode, FileCaching caching);
/// AsyncFileQueue::open_temporary.
OpenFile open_temporary_file(const std::string& folder, FileCaching caching);
/// AsyncFileQueue::open_descriptor.
OpenFile open_descriptor_again(int descriptor, FileCaching caching);
/// The path that messages give a temporary file.
std::string temporary_file_label(const std::string& folder);
void close_file(OpenFile& file) noexcept;
/// Requires: 0 <= begin < end.
void preallocate_file(const OpenFile& file, int64_t begin, int64_t end);
void truncate_file(const OpenFile& file, int64_t bytes);
void sync_file(const OpenFile& file);
int64_t length_of_file(const OpenFile& file);

std::unique_ptr<Engine> make_engine(AsyncEngine engine, QueueCore& core);

/// Whether the call may succeed when it is simply made again (EINTR, EAGAIN).
bool is_passing(int error);
bool is_disk_full(int error);
std::string error_text(int error);

}  // namespace deepscale::async_internal
