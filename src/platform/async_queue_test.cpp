// The queue of asynchronous files against an engine whose every answer the test chooses.
#include <gtest/gtest.h>
#ifdef _WIN32
#include <windows.h>
#else
#include <cerrno>
#endif

#include <functional>
#include <map>

#include "deepscale/error.h"
#include "platform/async_internal.h"

namespace deepscale::async_internal {
namespace {

#ifdef _WIN32
constexpr int kTryAgain = ERROR_OPERATION_ABORTED;
constexpr int kDiskFull = ERROR_DISK_FULL;
constexpr int kBroken = ERROR_CRC;
#else
constexpr int kTryAgain = EAGAIN;
constexpr int kDiskFull = ENOSPC;
constexpr int kBroken = EIO;
#endif

class NoEngine final : public Engine {
 public:
  void wake() override {}
};

/// A queue without threads: the test takes the blocks.
class Queue : public ::testing::Test {
 protected:
  static constexpr int kDepth = 3;
  static constexpr int64_t kBlock = 8192;

  Queue() : core_(kDepth, kBlock) { core_.use(std::make_unique<NoEngine>()); }
  ~Queue() override { core_.stop(nullptr); }

  std::unique_ptr<Transfer> submit(int64_t offset, int64_t bytes, bool writing = false) {
    auto transfer = std::make_unique<Transfer>();
    transfer->file = file_;
    transfer->writing = writing;
    transfer->offset = offset;
    transfer->data = memory_;
    transfer->bytes = bytes;
    core_.submit(*transfer);
    return transfer;
  }

  /// Takes blocks until there are none, and answers each.
  void run(const std::function<int64_t(const Block&)>& answer) {
    const auto guard = core_.lock();
    while (Block* const block = core_.take()) {
      seen_.push_back(*block);
      core_.finished(*block, answer(*block));
    }
  }

  alignas(4096) char memory_[1 << 16] = {};
  std::shared_ptr<OpenFile> file_ = std::make_shared<OpenFile>(OpenFile{
      .path = "swap.bin", .writable = true, .buffered = 5, .direct = 6, .alignment = 4096, .memory_alignment = 512});
  QueueCore core_;
  std::vector<Block> seen_;
};

TEST_F(Queue, HandsOutNoMoreThanItsDepthAndInOrder) {
  const auto first = submit(0, 4 * kBlock);
  const auto second = submit(1 << 20, kBlock);
  const auto guard = core_.lock();
  Block* const blocks[] = {core_.take(), core_.take(), core_.take()};
  for (int i = 0; i < kDepth; ++i) EXPECT_EQ(blocks[i]->offset, i * kBlock);
  EXPECT_EQ(core_.take(), nullptr);
  core_.finished(*blocks[1], kBlock);
  Block* const fourth = core_.take();
  EXPECT_EQ(fourth->offset, 3 * kBlock);
  core_.finished(*blocks[0], kBlock);
  Block* const other = core_.take();
  EXPECT_EQ(other->offset, 1 << 20);
  core_.finished(*other, kBlock);
  EXPECT_TRUE(second->done);  // need not wait for what was submitted before
  EXPECT_FALSE(first->done);
  core_.finished(*fourth, kBlock);
  core_.finished(*blocks[2], kBlock);
  EXPECT_TRUE(first->done);
}

TEST_F(Queue, ContinuesShortMovesWhereTheyEnded) {
  const auto transfer = submit(0, kBlock);
  run([](const Block& block) { return std::min<int64_t>(block.bytes, 4096 + 100); });
  EXPECT_TRUE(transfer->done);
  EXPECT_EQ(transfer->error, "");
  ASSERT_EQ(seen_.size(), 2u);
  EXPECT_TRUE(seen_[0].direct);
  EXPECT_EQ(seen_[1].offset, 4196);
  EXPECT_EQ(seen_[1].data, memory_ + 4196);
  EXPECT_EQ(seen_[1].bytes, kBlock - 4196);
  EXPECT_FALSE(seen_[1].direct);  // the rest is not aligned any more
}

TEST_F(Queue, TriesPassingFailuresAgainAndGivesUpInTheEnd) {
  const auto lucky = submit(0, 4096);
  int calls = 0;
  run([&](const Block& block) { return ++calls < 5 ? -kTryAgain : block.bytes; });
  EXPECT_TRUE(lucky->done);
  EXPECT_EQ(lucky->error, "");
  EXPECT_EQ(calls, 5);
  const auto hopeless = submit(0, 4096);
  run([](const Block&) { return -kTryAgain; });
  EXPECT_TRUE(hopeless->done);
  EXPECT_NE(hopeless->error.find("cannot read 4096 bytes at offset 0 of swap.bin"), std::string::npos)
      << hopeless->error;
}

TEST_F(Queue, ReportsTheFirstFailureAndStartsNoMoreBlocks) {
  const auto transfer = submit(0, 6 * kBlock, /*writing=*/true);
  run([](const Block& block) { return block.offset == kBlock ? -kBroken : block.bytes; });
  EXPECT_TRUE(transfer->done);
  EXPECT_EQ(seen_.size(), 2u);
  EXPECT_NE(transfer->error.find("cannot write 8192 bytes at offset 8192 of swap.bin: " + error_text(kBroken)),
            std::string::npos)
      << transfer->error;
}

TEST_F(Queue, SaysWhatToDoWhenTheDiskIsFull) {
  const auto transfer = submit(0, kBlock, /*writing=*/true);
  run([](const Block&) { return -kDiskFull; });
  EXPECT_NE(transfer->error.find("bytes are free there); free some space"), std::string::npos) << transfer->error;
}

TEST_F(Queue, WaitsForBlocksUnderWayWhenOthersFailed) {
  const auto transfer = submit(0, 2 * kBlock);
  const auto guard = core_.lock();
  Block* const first = core_.take();
  Block* const second = core_.take();
  core_.finished(*second, -kBroken);
  EXPECT_FALSE(transfer->done);
  core_.finished(*first, 100);  // short, but nobody wants the rest any more
  EXPECT_EQ(core_.take(), nullptr);
  EXPECT_TRUE(transfer->done);
}

TEST_F(Queue, TreatsAWriteOfNothingAsAFailure) {
  const auto transfer = submit(0, kBlock, /*writing=*/true);
  run([](const Block&) { return 0; });
  EXPECT_NE(transfer->error.find("takes no bytes"), std::string::npos) << transfer->error;
}

struct PieceCase {
  int64_t offset, address, bytes, expected_bytes;
  bool expected_direct;
};

TEST(NextPiece, FollowsTheAlignmentRules) {
  const OpenFile file = {.path = "x", .direct = 6, .alignment = 4096, .memory_alignment = 512};
  const PieceCase cases[] = {
      {0, 0, 100'000, 16384, true},       // whole blocks go directly
      {0, 0, 10'000, 8192, true},         // whole pages of the rest
      {8192, 8192, 1'808, 1'808, false},  // tail
      {100, 100, 100'000, 3'996, false},  // head, up to the page
      {100, 100, 50, 50, false},          // within one page
      {4096, 512, 4096, 4096, true},      // memory has its own alignment
      {4096, 64, 100'000, 16384, false},  // not to be aligned
      {0, 0, 4095, 4095, false},
  };
  for (const PieceCase& test : cases) {
    const Piece piece = next_piece(file, 16384, test.offset, static_cast<uintptr_t>(test.address), test.bytes);
    EXPECT_EQ(piece.bytes, test.expected_bytes) << test.offset << " " << test.address << " " << test.bytes;
    EXPECT_EQ(piece.direct, test.expected_direct) << test.offset << " " << test.address << " " << test.bytes;
  }
  const OpenFile large_pages = {.path = "x", .direct = 6, .alignment = 65536, .memory_alignment = 512};
  EXPECT_EQ(next_piece(large_pages, 4096, 0, 0, 200'000).bytes, 65536);  // a block smaller than a page
  EXPECT_EQ(next_piece({.path = "x"}, 4096, 1, 1, 200'000).bytes, 4096);
}

}  // namespace
}  // namespace deepscale::async_internal
