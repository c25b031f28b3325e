// SharedMemory: a range of memory that other processes of this machine can map. Sparse: a range of terabytes costs
// nothing until parts of it are committed. No name in any file system is needed, so nothing is left behind when a
// process is killed and no size limit of /dev/shm applies. Linux: memfd, reached through /proc/<pid>/fd; where /proc
// does not allow that, a named object that is unlinked as soon as the peers have it. Windows: a pagefile-backed section
// created with SEC_RESERVE, opened by a name that nobody can guess; the name goes with the creator's handle.
// Threads: commit and decommit of disjoint ranges may run at once.
#pragma once

#include <cstdint>
#include <string>

namespace deepscale {

class SharedMemory {
 public:
  enum class Naming : uint8_t {
    kAnonymous,  ///< reached through the creating process; the creator must be alive when a peer opens it
    kNamed,      ///< reached by a name, until unlink()
  };

  /// A new range that reads as zero. bytes > 0; rounded up to whole pages. Throws IoError.
  static SharedMemory create(int64_t bytes, Naming naming = Naming::kAnonymous);
  /// Maps the range that token() of another SharedMemory names. Throws IoError when it cannot be reached: other
  /// machine, other user, other container, or gone.
  static SharedMemory open(const std::string& token);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  /// Unmaps; the bytes live on while somebody has them mapped.
  ~SharedMemory();

  [[nodiscard]] char* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }
  /// What a peer passes to open(). Only of an object made by create(), as long as that object exists.
  [[nodiscard]] const std::string& token() const { return token_; }
  /// Removes the name; who has opened it keeps it. Nothing for kAnonymous.
  void unlink();

  /// Takes memory for [offset, offset + bytes), so that touching it cannot fail later; what was there stays. offset and
  /// bytes are multiples of the page size. Throws IoError naming what is missing and what to change. Creator only.
  void commit(int64_t offset, int64_t bytes);
  /// Gives the pages back to the system, for everybody: they read as zero afterwards. Whole pages. Creator only.
  /// Windows: they are zeroed and leave main memory, but stay counted in the page file until the object is gone.
  void decommit(int64_t offset, int64_t bytes);

 private:
  SharedMemory() = default;
  void close();

  char* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t handle_ = -1;
  std::string token_;
  std::string name_;  // kNamed and not yet unlinked
};

}  // namespace deepscale
