#include "comm/host_allocator.h"

#include <cassert>

namespace deepscale {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

HostRange HostAllocator::FreeList::insert(HostRange range) {
  auto next = by_offset.lower_bound(range.offset);
  if (next != by_offset.end() && range.offset + range.bytes == next->first) {
    const HostRange right{next->first, next->second};
    ++next;
    erase(right);
    range.bytes += right.bytes;
  }
  if (next != by_offset.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == range.offset) {
      const HostRange left{previous->first, previous->second};
      erase(left);
      range = {left.offset, left.bytes + range.bytes};
    }
  }
  by_offset.emplace(range.offset, range.bytes);
  by_size.emplace(range.bytes, range.offset);
  return range;
}

void HostAllocator::FreeList::erase(HostRange range) {
  by_offset.erase(range.offset);
  by_size.erase({range.bytes, range.offset});
}

std::optional<HostRange> HostAllocator::FreeList::take(int64_t bytes, int64_t alignment) {
  for (auto candidate = by_size.lower_bound({bytes, 0}); candidate != by_size.end(); ++candidate) {
    const HostRange range{candidate->second, candidate->first};
    const int64_t start = round_up(range.offset, alignment);
    const int64_t end = range.offset + range.bytes;
    if (start + bytes > end) continue;
    erase(range);
    if (start > range.offset) insert({range.offset, start - range.offset});
    if (end > start + bytes) insert({start + bytes, end - start - bytes});
    return HostRange{start, bytes};
  }
  return std::nullopt;
}

HostAllocator::HostAllocator(int64_t begin, int64_t end) {
  if (end > begin) clean_.insert({begin, end - begin});
}

std::optional<HostAllocator::Block> HostAllocator::take(int64_t bytes) {
  const bool large = bytes >= kLarge;
  const int64_t rounded = large ? round_up(bytes, kPage) : round_up(bytes > 0 ? bytes : 1, kAlignment);
  Block block;
  if (const auto range = dirty_.take(rounded, large ? kPage : kAlignment)) {
    block = {range->offset, range->bytes, /*dirty=*/true, std::nullopt};
  } else if (large) {
    const auto fresh = clean_.take(rounded, kPage);
    if (!fresh) return std::nullopt;
    block = {fresh->offset, fresh->bytes, /*dirty=*/false, fresh};
  } else {
    auto refill = clean_.take(kRefill, kPage);
    if (!refill) refill = clean_.take(round_up(rounded, kPage), kPage);
    if (!refill) return std::nullopt;
    block = {refill->offset, rounded, /*dirty=*/false, refill};
    if (refill->bytes > rounded) dirty_.insert({refill->offset + rounded, refill->bytes - rounded});
  }
  used_.emplace(block.offset, block.bytes);
  used_bytes_ += block.bytes;
  return block;
}

void HostAllocator::cancel(const Block& block) {
  assert(block.commit.has_value());
  used_.erase(block.offset);
  used_bytes_ -= block.bytes;
  if (block.commit->bytes > block.bytes) {
    // The rest of a refill became a dirty range, possibly merged with its neighbours: cut it out again.
    const HostRange rest{block.commit->offset + block.bytes, block.commit->bytes - block.bytes};
    const auto holder = std::prev(dirty_.by_offset.upper_bound(rest.offset));
    const HostRange merged{holder->first, holder->second};
    dirty_.erase(merged);
    if (rest.offset > merged.offset) dirty_.insert({merged.offset, rest.offset - merged.offset});
    const int64_t end = merged.offset + merged.bytes;
    if (end > rest.offset + rest.bytes) dirty_.insert({rest.offset + rest.bytes, end - rest.offset - rest.bytes});
  }
  clean_.insert(*block.commit);
}

std::optional<HostRange> HostAllocator::give(int64_t offset) {
  const auto entry = used_.find(offset);
  assert(entry != used_.end());
  const HostRange block{offset, entry->second};
  used_.erase(entry);
  used_bytes_ -= block.bytes;
  const HostRange merged = dirty_.insert(block);
  if (merged.bytes < kGiveBack) return std::nullopt;
  return clean_pages(merged);
}

std::optional<HostRange> HostAllocator::clean_pages(HostRange range) {
  const int64_t begin = round_up(range.offset, kPage);
  const int64_t range_end = range.offset + range.bytes;
  const int64_t end = range_end / kPage * kPage;
  if (end <= begin) return std::nullopt;
  dirty_.erase(range);
  if (begin > range.offset) dirty_.insert({range.offset, begin - range.offset});
  if (range_end > end) dirty_.insert({end, range_end - end});
  clean_.insert({begin, end - begin});
  return HostRange{begin, end - begin};
}

std::vector<HostRange> HostAllocator::trim() {
  std::vector<HostRange> dirty;
  for (const auto& [offset, bytes] : dirty_.by_offset) dirty.push_back({offset, bytes});
  std::vector<HostRange> pages;
  for (const HostRange range : dirty) {
    if (const auto cleaned = clean_pages(range)) pages.push_back(*cleaned);
  }
  return pages;
}

int64_t HostAllocator::free_bytes() const {
  int64_t bytes = 0;
  for (const auto& [size, offset] : clean_.by_size) bytes += size;
  for (const auto& [size, offset] : dirty_.by_size) bytes += size;
  return bytes;
}

}  // namespace deepscale
