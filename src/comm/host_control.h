// The structures in shared memory through which ranks of one host coordinate. Every rank writes its own and reads its
// peers'; only where a comment says so does a peer write. All counters only grow. All of it starts as zero bytes.
//
// [Note: host collectives]
// A rank's segment begins with its HostRankHeader. For every group the rank has a HostBlock somewhere in its segment.
//
// Posting. Operation #n of a group is described in slot n % kSlots of the rank's block; the slot's sequence becomes n +
// 1 last (release), and a peer that reads n + 1 (acquire) may read the rest. A slot is written again only when every
// peer's `done` has passed the operation that it held; until then later operations wait in the rank's local queue, so
// posting never blocks.
//
// Working. A rank works off its queue in order, in whatever wait (of any group) it finds itself: a rank that waits for
// #n therefore also does its share of all earlier operations, which is why waits in different order, or for different
// groups, cannot block each other. Its share of an operation begins when the peers it needs have posted theirs, and
// takes one of three ways, which follow from the descriptors alone, so that all ranks take the same:
//   inline  up to kInlineBytes travel in the slot itself: one cache-line round trip, and the input is free at once.
//   direct  all inputs lie in shared memory: peers read them there. all_reduce: rank r reduces slice r of all buffers
//           and stores the result in all of them, so its output is complete when every peer is done. Everything else
//           only reads peers' inputs: complete when this rank is done.
//   staged  otherwise: every rank copies its input piece by piece into its staging area, a ring of pieces, and
//           takes what it needs from its peers' pieces. `staged` counts the pieces written, `consumed` the pieces taken
//           from the peers; piece k may be overwritten when every peer's `consumed` has passed it. Both count over all
//           staged operations of the group.
// When its share is done a rank sets `done` to n + 1. An input read in place is free when every peer's `done` has
// passed.
//
// Waiting. A rank that cannot go on spins (if there are as many CPUs as ranks), yields, and then sleeps on the bell in
// its header: it adds itself to `sleepers`, looks once more, sleeps. Who publishes something looks at the peers'
// `sleepers` afterwards and rings. Both sides are sequentially consistent, so one of the two always sees the other.
//
// Failing. The first rank that fails writes the cause into the header of rank 0 (of connect()) and rings everybody. A
// rank that leaves sets `left` in its block; a rank that is killed is found by its peers, which look for it whenever a
// sleep has ended without a bell.
//
// Sends and receives go through a HostChannel per ordered pair, in the sender's segment, made at the first send. It
// works like the above with one writer and one reader; the reader writes `taken` and `consumed`.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "base/reduce_op.h"
#include "comm/host_memory.h"
#include "platform/wait_word.h"

namespace deepscale {

inline constexpr int64_t kInlineBytes = 4096;
inline constexpr uint64_t kSlots = 32;
inline constexpr uint64_t kChannelSlots = 8;

/// A staging ring: as many pieces as fit, each small enough to stay in a core's cache between its writer and its
/// readers.
struct StagingShape {
  static constexpr int64_t kLargestPiece = 256 << 10;
  static constexpr int64_t kFewestPieces = 4;

  int64_t piece_bytes = 0;
  uint64_t pieces = 0;

  /// staging_bytes >= 256.
  static constexpr StagingShape of(int64_t staging_bytes) {
    int64_t piece = staging_bytes / kFewestPieces / 64 * 64;
    if (piece > kLargestPiece) piece = kLargestPiece;
    return {piece, static_cast<uint64_t>(staging_bytes / piece)};
  }
  [[nodiscard]] int64_t bytes() const { return piece_bytes * static_cast<int64_t>(pieces); }
};

using SharedCounter = std::atomic<uint64_t>;
static_assert(SharedCounter::is_always_lock_free && sizeof(SharedCounter) == 8);

enum class HostKind : uint8_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kAllToAll,
  kBarrier,
  kSend,
  kRecv,
};
std::string_view name_of(HostKind kind);

/// Where a rank's input is to be found.
enum class HostSource : uint8_t {
  kNone,     ///< this rank has no input (broadcast, not the root)
  kInline,   ///< in the slot
  kShared,   ///< in shared memory, at the descriptor's address
  kForeign,  ///< in the rank's private memory: it must be staged
};

/// What one rank says about one operation; what peers compare.
struct HostDescriptor {
  HostKind kind = HostKind::kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp op = ReduceOp::kSum;
  HostSource source = HostSource::kNone;
  int32_t root = 0;
  int64_t count = 0;
  SharedAddress address;

  /// Same operation, apart from where the data lies.
  [[nodiscard]] bool agrees_with(const HostDescriptor& other) const;
};

/// Text that may be read while it is written (the reader then sees a mixture): diagnostics only.
template <size_t kBytes>
class SharedText {
 public:
  void store(std::string_view text) {
    text = text.substr(0, kBytes - 1);
    for (size_t word = 0; word * 8 < kBytes; ++word) {
      uint64_t value = 0;
      for (size_t i = 0; i < 8 && word * 8 + i < text.size(); ++i) {
        value |= static_cast<uint64_t>(static_cast<unsigned char>(text[word * 8 + i])) << (8 * i);
      }
      words_[word].store(value, std::memory_order_relaxed);
      if (value == 0) break;
    }
  }
  [[nodiscard]] std::string load() const {
    std::string text;
    for (const auto& word : words_) {
      const uint64_t value = word.load(std::memory_order_relaxed);
      for (int shift = 0; shift < 64; shift += 8) {
        const char byte = static_cast<char>(value >> shift);
        if (byte == '\0') return text;
        text += byte;
      }
    }
    return text;
  }

 private:
  std::array<SharedCounter, kBytes / 8> words_;
};

struct alignas(64) HostSlot {
  SharedCounter sequence;  ///< operation number + 1 when what follows is valid
  SharedCounter packed;    ///< kind, dtype, op, source, root
  SharedCounter count;
  SharedCounter address_rank;
  SharedCounter address_offset;
  alignas(64) char data[kInlineBytes];
  alignas(64) SharedText<48> tag;

  /// Everything but the sequence.
  void write(const HostDescriptor& descriptor, std::string_view tag_text);
  [[nodiscard]] HostDescriptor read() const;
};

/// Per rank, at offset 0 of its segment.
struct HostRankHeader {
  static constexpr int64_t kReservedBytes = 8192;

  alignas(64) WaitWord bell;       ///< peers change and ring it
  std::atomic<uint32_t> sleepers;  ///< threads of this rank that sleep on the bell or are about to
  alignas(64) SharedCounter pid;
  SharedCounter start_time;
  alignas(64) SharedText<64> position;  ///< set_position()
  SharedText<192> waiting;              ///< what this rank sleeps for; empty when it does not
  /// Rank 0's counts for all: 0 none, 1 being written (by the rank that failed), 2 written.
  alignas(64) std::atomic<uint32_t> failure;
  SharedText<1024> failure_text;
};
static_assert(sizeof(HostRankHeader) <= HostRankHeader::kReservedBytes);

/// Per rank and group.
struct HostBlock {
  alignas(64) SharedCounter done;      ///< operations of which this rank's share is done
  alignas(64) SharedCounter staged;    ///< pieces written to the staging ring
  alignas(64) SharedCounter consumed;  ///< pieces taken from the peers
  alignas(64) SharedCounter left;      ///< 1: this rank has left the group
  SharedCounter leavers;               ///< written by all: ranks that will not look at this block again
  SharedCounter staging_offset;        ///< 0: none yet
  SharedCounter posted;                ///< operations posted, for diagnostics
  alignas(64) HostSlot slots[kSlots];
  // After the block: one SharedCounter per member, the offset of the channel to that member, 0: none yet.

  [[nodiscard]] static int64_t bytes_for(int size) {
    return static_cast<int64_t>(sizeof(HostBlock) + static_cast<size_t>(size) * sizeof(SharedCounter));
  }
  [[nodiscard]] SharedCounter& channel_offset(int peer) { return reinterpret_cast<SharedCounter*>(this + 1)[peer]; }
};

/// Messages from one rank to another, in the sender's segment.
struct HostChannel {
  alignas(64) SharedCounter taken;     ///< by the reader: messages received
  alignas(64) SharedCounter consumed;  ///< by the reader: pieces taken
  alignas(64) SharedCounter staged;    ///< pieces written
  SharedCounter staging_offset;        ///< 0: none yet
  alignas(64) HostSlot slots[kChannelSlots];
};

}  // namespace deepscale
