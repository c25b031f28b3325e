// HostAllocator: which parts of a segment are in use. Pure bookkeeping over offsets; it touches no memory.
// A free range is either clean (the system holds no pages for it: reads as zero, must be committed before use) or dirty
// (committed, old bytes). Small blocks are carved out of dirty ranges; large ones are page aligned and whole pages.
// Best fit. Threads: one at a time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace deepscale {

struct HostRange {
  int64_t offset = 0;
  int64_t bytes = 0;
};

class HostAllocator {
 public:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kPage = 4096;
  /// From here on blocks are page aligned.
  static constexpr int64_t kLarge = 64 << 10;
  /// From here on free ranges are given back to the system.
  static constexpr int64_t kGiveBack = 1 << 20;
  /// Clean memory becomes home of small blocks in pieces of this size.
  static constexpr int64_t kRefill = 256 << 10;

  /// Manages [begin, end), clean; both are multiples of kPage.
  HostAllocator(int64_t begin, int64_t end);

  struct Block {
    int64_t offset = 0;
    int64_t bytes = 0;                ///< as rounded up
    bool dirty = false;               ///< the caller must zero the block
    std::optional<HostRange> commit;  ///< the caller must commit this first, or cancel()
  };

  /// Nothing when no free range is long enough. bytes >= 0; blocks of 0 bytes are distinct too.
  [[nodiscard]] std::optional<Block> take(int64_t bytes);
  /// Undoes a take() whose commit failed.
  void cancel(const Block& block);
  /// Frees the block; the caller gives the pages of the returned range, if any, back to the system and nobody touches
  /// them before that.
  [[nodiscard]] std::optional<HostRange> give(int64_t offset);

  /// Makes all free memory one kind again, for a take() that found no range: the caller gives the pages of the returned
  /// ranges back to the system. What shares a page with a used block stays dirty.
  [[nodiscard]] std::vector<HostRange> trim();

  [[nodiscard]] int64_t used_bytes() const { return used_bytes_; }
  [[nodiscard]] int64_t free_bytes() const;

 private:
  /// Free ranges of one kind, merged with their neighbours of that kind.
  struct FreeList {
    std::map<int64_t, int64_t> by_offset;
    std::set<std::pair<int64_t, int64_t>> by_size;  // (bytes, offset)

    HostRange insert(HostRange range);  // returns the merged range
    void erase(HostRange range);
    std::optional<HostRange> take(int64_t bytes, int64_t alignment);
  };

  /// Moves the whole pages of a free dirty range to the clean ones. Nothing when it has none.
  std::optional<HostRange> clean_pages(HostRange range);

  FreeList clean_;
  FreeList dirty_;
  std::unordered_map<int64_t, int64_t> used_;  // offset -> bytes
  int64_t used_bytes_ = 0;
};

}  // namespace deepscale
