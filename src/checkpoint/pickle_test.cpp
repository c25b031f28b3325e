// Pickles: hostile and cut bytes end in CheckpointError, layouts agree with arithmetic by hand.
#include "checkpoint/pickle.h"

#include <gtest/gtest.h>

#include "checkpoint/state_layout.h"
#include "checkpoint/test_support.h"
#include "deepscale/error.h"

namespace deepscale {
namespace {

TEST(Pickle, CutOrChangedBytesNeverDoMoreThanThrow) {
  const std::string bytes = write_pickle(test::sample_document()).bytes;
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_THROW(read_pickle(bytes.substr(0, length)), CheckpointError) << length;
  }
  int refused = 0;
  for (size_t place = 0; place < bytes.size(); ++place) {
    for (const char other : {'\x00', '\xff', '(', 't', 'R', 'b', 'u', 'Q', 'h', '0'}) {
      std::string changed = bytes;
      changed[place] = other;
      try {
        (void)read_pickle(changed);
      } catch (const CheckpointError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

void expect_refused(const std::string& bytes, const std::string& part) {
  try {
    (void)read_pickle(bytes);
    ADD_FAILURE() << "no error; expected " << part;
  } catch (const CheckpointError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

/// A tensor of `sizes` and `strides` at `offset` over a storage of `numel` elements (one-byte numbers).
std::string tensor_pickle(const std::string& storage, char numel, const std::string& offset, const std::string& sizes,
                          const std::string& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n" + storage +
         "\nU\x01"
         "0U\x03"
         "cpuK" +
         numel + "tQ" + offset + "(" + sizes + "t(" + strides + "t\x89)tR.";
}

TEST(Pickle, TensorsThatReachBeyondTheirStorageAreRefused) {
  EXPECT_NO_THROW(read_pickle(tensor_pickle("FloatStorage", 6, "K\x01", "K\x05", "K\x01")));
  expect_refused(tensor_pickle("FloatStorage", 6, "K\x02", "K\x05", "K\x01"), "beyond its storage");
  expect_refused(tensor_pickle("FloatStorage", 6, "J\xff\xff\xff\xff", "K\x05", "K\x01"), "do not match");
  expect_refused(tensor_pickle("FloatStorage", 6, "K\x01", "J\xff\xff\xff\xff", "K\x01"), "negative");
  expect_refused(tensor_pickle("FloatStorage", 6, "K\x01", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
                               "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"),
                 "beyond its storage");
  expect_refused(tensor_pickle("FloatStorage", 6, "K\x01", "K\x05", ""), "do not match");
  expect_refused(tensor_pickle("StrangeStorage", 6, "K\x01", "K\x05", "K\x01"), "StrangeStorage");
}

TEST(Pickle, NothingIsExecutedAndDeepOrCyclicDataIsHarmless) {
  const PyDocument call = read_pickle("cposix\nsystem\n(U\x07touch xtR.");
  EXPECT_EQ(call.root.node()->type, "posix.system");
  std::string deep = "]";
  for (int i = 0; i < 200000; ++i) deep += "q" + std::string(1, '\0') + "]h" + std::string(1, '\0') + "a";
  (void)read_pickle(deep + ".");
  (void)read_pickle(std::string("]q\0h\0a.", 7));  // a list that holds itself
  expect_refused("h\x05.", "unknown object");
  expect_refused("t.", "mark");
  expect_refused("\x80\x09.", "protocol 9");
  expect_refused("X\xff\xff\xff\xffzz.", "ends too early");
  expect_refused("Z.", "0x5a");
}

TEST(StateLayout, PartitionsAreEqualAndPaddedAtTheEnd) {
  const StateLayout layout(StateLayoutKind::kPartitioned, {5, 0, 8}, 2);  // 13 elements, padded to 16
  EXPECT_EQ(layout.partition_numel(), 8);
  EXPECT_EQ(layout.padding(0), 0);
  EXPECT_EQ(layout.padding(1), 3);
  const auto pieces = layout.pieces(2);
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].rank, 0);
  EXPECT_EQ(pieces[0].start, 5);
  EXPECT_EQ(pieces[0].length, 3);
  EXPECT_EQ(pieces[1].rank, 1);
  EXPECT_EQ(pieces[1].offset, 3);
  EXPECT_EQ(pieces[1].start, 0);
  EXPECT_EQ(pieces[1].length, 5);
  EXPECT_TRUE(layout.pieces(1).empty());
  EXPECT_EQ(StateLayout(StateLayoutKind::kPartitioned, {1}, 4).padding(0), 1);  // 2 elements per rank, one is filled
  EXPECT_EQ(StateLayout(StateLayoutKind::kPartitioned, {1}, 4).padding(3), 2);
}

TEST(StateLayout, PiecesPerParameterStandEndToEnd) {
  const StateLayout layout(StateLayoutKind::kPerParameter, {5, 7}, 2);
  EXPECT_EQ(layout.partition_numel(), 3 + 4);
  const auto pieces = layout.pieces(1, 2, 4);  // elements 2..5 of 0..6
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].rank, 0);
  EXPECT_EQ(pieces[0].start, 3 + 2);
  EXPECT_EQ(pieces[0].length, 2);
  EXPECT_EQ(pieces[1].rank, 1);
  EXPECT_EQ(pieces[1].start, 3);
  EXPECT_EQ(pieces[1].offset, 4);
  EXPECT_EQ(sub_groups({4, 4, 10, 1}, 2, 4), (std::vector<std::vector<int>>{{0, 1}, {2}, {3}}));
  EXPECT_EQ(round_robin(5, 2), (std::vector<int>{0, 2, 4, 1, 3}));
}

}  // namespace
}  // namespace deepscale
