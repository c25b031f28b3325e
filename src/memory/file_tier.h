// Tensors that live in a file and visit memory: the file tier of parameters, gradients and optimizer state
// (ZeRO-Infinity; Rajbhandari et al. 2021, arXiv 2104.07857).
//
//   FileTier tier({.folder = "/nvme"});
//   FileTensor moments(tier, numel, at::kFloat, "exp_avg of layers.3");
//   moments.start_load();   // optional, ahead of time
//   moments.load();         // moments.tensor() and all views of it have memory now
//   ...
//   moments.start_store();  // written in the background; the memory goes back to the tier by itself
//
// One file per tier holds all its tensors, each at its own page-aligned place. It has no lasting name: a run that is
// killed leaves nothing behind, and nobody can remove it under a run. Disk space is reserved when a tensor is made, so
// that a full disk is an error before training and not in the middle of a step.
//
// Memory comes from a pool of page-aligned buffers of at most pool_bytes in all, pinned for the queue where the system
// allows it. Who needs a tensor when the pool is used up waits for the oldest write; when none is under way, the tensor
// gets memory beside the pool, which is given back at once (beyond_pool_bytes says how much there has been).
//
// A write that fails is reported by the next load() of that tensor, by flush(), and by every later use: what it held is
// lost and is never replaced by old values.
// Threads: one at a time for a tier and all its tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/log.h"
#include "platform/async_file.h"

namespace deepscale {

namespace memory_internal {
struct TierCore;
struct TensorCore;
}  // namespace memory_internal

struct FileTierOptions {
  std::string folder;  ///< made when missing
  /// Nothing: depth and block size that suit the disk (io_calibration.h).
  std::optional<AsyncFileOptions> queue = AsyncFileOptions();
  int64_t pool_bytes = 1 << 28;  ///< at most so much memory for tensors that are loaded, loading or being written
  bool pin = true;               ///< pin the pool's buffers for the queue, as far as the system allows
  std::optional<Logger> log;     ///< is told, once each, that io_uring or pinning is refused; nothing: nobody is
};

struct FileTierFacts {
  int64_t file_bytes = 0;         ///< reserved on the disk
  int64_t pool_bytes = 0;         ///< of the pool's buffers now
  int64_t peak_pool_bytes = 0;    ///< since set_pool_bytes(), if that was called
  int64_t beyond_pool_bytes = 0;  ///< largest amount that had to be taken beside the pool
  int64_t resident_bytes = 0;     ///< of tensors that stay (stay_loaded), which are outside of the pool
  int64_t pinned_bytes = 0;
  int64_t read_bytes = 0, written_bytes = 0;  ///< since the start
  double wait_seconds = 0;                    ///< spent waiting for reads and writes, since the start
  int depth = 0;                              ///< requests under way at once
  int64_t block_bytes = 0;                    ///< of one request, at most
  bool direct = false;                        ///< past the page cache
  std::string pin_refusal;                    ///< why buffers are not pinned; empty when they are, or need not be
  AsyncEngineChoice engine;

  /// Of two tiers: amounts are added, all else is the first one's.
  FileTierFacts& operator+=(const FileTierFacts& other);
};

/// pool_share_bytes() of this process's memory.
int64_t usual_pool_bytes();

/// A handle: copies are the same tier, which lives as long as the last of them and of its tensors.
class FileTier {
 public:
  /// Throws IoError naming the folder when it cannot be used. Takes up to a second when the disk has to be measured.
  explicit FileTier(const FileTierOptions& options);
  bool operator==(const FileTier&) const = default;

  /// Returns when everything that was stored is in the file. Throws the first write's error since the last flush(),
  /// whoever has waited for it meanwhile.
  void flush();
  /// The pool has at most `bytes` from now on, instead of what the options said; of several calls the largest number
  /// counts. Buffers that no tensor uses are given back now, others that are too many as they come free.
  /// peak_pool_bytes begins anew.
  void set_pool_bytes(int64_t bytes);
  [[nodiscard]] FileTierFacts facts() const;

 private:
  friend class FileTensor;
  explicit FileTier(std::shared_ptr<memory_internal::TierCore> core) : core_(std::move(core)) {}
  std::shared_ptr<memory_internal::TierCore> core_;
};

class FileTensor {
 public:
  FileTensor() = default;
  /// [numel] zeros of dtype, on the disk alone. `name` says in errors what it holds. Throws IoError when the disk has
  /// no room for it.
  FileTensor(const FileTier& tier, int64_t numel, at::ScalarType dtype, std::string name);
  FileTensor(FileTensor&&) noexcept;
  FileTensor& operator=(FileTensor&&) noexcept;
  /// Waits for transfers under way; the place in the file is free for others.
  ~FileTensor();

  [[nodiscard]] bool defined() const { return core_ != nullptr; }
  [[nodiscard]] FileTier tier() const;
  /// Always the same tensor. Its storage has no memory, and size 0, while the tensor is not loaded.
  [[nodiscard]] const at::Tensor& tensor() const;
  /// Elements [offset, offset + length), which follow tensor()'s memory. ATen makes views only of what has memory.
  [[nodiscard]] at::Tensor view(int64_t offset, int64_t length) const;
  [[nodiscard]] int64_t nbytes() const;
  [[nodiscard]] bool loaded() const;

  /// Begins to read. Does nothing when it is loaded or loading, or when the pool has no room (false then).
  bool start_load();
  /// Gives it memory with its values. Throws IoError.
  void load();
  /// Gives it memory without reading: the caller overwrites all of it.
  void load_for_overwrite();
  /// Begins to write. Requires: loaded. The tensor has no memory from now on.
  void start_store();
  /// Gives its memory up; the file keeps the values of the last store. Drops a load under way.
  void drop();
  /// Requires: loaded. Its memory no longer counts as the pool's, and is given back when the tensor is dropped or
  /// stored.
  void stay_loaded();

 private:
  std::shared_ptr<memory_internal::TensorCore> core_;
};

}  // namespace deepscale
