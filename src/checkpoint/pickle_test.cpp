// Pickles: hostile and cut bytes end in CheckpointError, layouts agree with arithmetic by hand.
#include "checkpoint/pickle.h"

#include <gtest/gtest.h>

#include <limits>

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

TEST(Pickle, TensorsWithAttributesAreTensors) {
  // _rebuild_from_type_v2(_rebuild_tensor_v2, torch.Tensor, (storage, offset, shape, strides, ...), {})
  const std::string inner = tensor_pickle("FloatStorage", 6, "K\x01", "K\x05", "K\x01");
  const std::string function = "ctorch._utils\n_rebuild_tensor_v2\n";
  const std::string arguments = inner.substr(function.size(), inner.size() - function.size() - 2);  // without R.
  const std::string outer = "ctorch._tensor\n_rebuild_from_type_v2\n(" + function + "ctorch\nTensor\n" + arguments;
  const PyDocument document = read_pickle(outer + "}tR.");
  ASSERT_TRUE(document.root.is(PyKind::kTensor));
  EXPECT_EQ(document.root.node()->tensor.sizes, std::vector<int64_t>{5});
  EXPECT_EQ(document.root.node()->tensor.offset, 1);
  // Of itself, and of something else: no tensor, and nothing is called.
  const std::string self = "ctorch._tensor\n_rebuild_from_type_v2\n";
  EXPECT_TRUE(read_pickle(self + "(" + self + "ctorch\nTensor\n(t}tR.").root.is(PyKind::kCall));
  EXPECT_TRUE(read_pickle(self + "(cposix\nsystem\nctorch\nTensor\n(U\x01xt}tR.").root.is(PyKind::kCall));
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

/// A list, memo 0, of `count` small numbers.
std::string long_tuple(int count) {
  std::string bytes = "(";
  for (int i = 0; i < count; ++i) bytes += "K\x01";
  return bytes + "tq" + std::string(1, '\0');
}
const std::string kGetFirst("h\0", 2);

TEST(Pickle, NamingSomethingAgainCostsNothing) {
  // A text of a megabyte a million times: 2 MB of pickle, a terabyte if it were copied.
  std::string bytes = std::string("X\0\0\x10\0", 5) + std::string(1 << 20, 'x') + std::string("q\0(", 3);
  for (int i = 0; i < 1'000'000; ++i) bytes += kGetFirst;
  const PyDocument document = read_pickle(bytes + "l.");
  const auto& items = document.root.as_items("the list");
  ASSERT_EQ(items.size(), 1'000'000u);
  EXPECT_EQ(items.front().get_if<std::string>(), items.back().get_if<std::string>());
}

TEST(Pickle, ListsOfTheSameListTwiceStaySmall) {
  std::string bytes = std::string("]q\0", 3);
  for (char i = 0; i < 100; ++i)
    bytes += "](h" + std::string(1, i) + "h" + std::string(1, i) + "eq" + std::string(1, static_cast<char>(i + 1));
  EXPECT_EQ(read_pickle(bytes + ".").root.as_items("the last").size(), 2u);  // 2^100 elements if they were written out
}

TEST(Pickle, CallsCannotMultiplyTheirArguments) {
  std::string calls = long_tuple(100'000) + "0", dictionaries = calls;
  for (int i = 0; i < 100'000; ++i) calls += "ca\nb\n" + kGetFirst + "R";
  expect_refused(calls + ".", "more arguments");
  dictionaries = "((K\x01K\x01t";
  for (int i = 0; i < 10'000; ++i) dictionaries += "2";
  dictionaries += std::string("t\x85q\0", 4);
  for (int i = 0; i < 10'000; ++i) dictionaries += "ccollections\nOrderedDict\n" + kGetFirst + "R";
  expect_refused(dictionaries + ".", "more arguments");
}

TEST(Pickle, TensorsThatRepeatTheirElementsStaySmall) {
  const std::string huge = "\x8a\x06" + std::string("\0\0\0\0\0\x01", 6);  // 2^40
  EXPECT_NO_THROW(read_pickle(
      tensor_pickle("FloatStorage", 1, "K" + std::string(1, '\0'), "M\x10\x27", "K" + std::string(1, '\0'))));
  expect_refused(tensor_pickle("FloatStorage", 1, "K" + std::string(1, '\0'), huge, "K" + std::string(1, '\0')),
                 "repeats");
  std::string sizes, strides;
  for (int i = 0; i < 65; ++i) {
    sizes += "K\x01";
    strides += "K\x01";
  }
  expect_refused(tensor_pickle("FloatStorage", 6, "K\x01", sizes, strides), "65 dimensions");
  // Nothing in it, and sizes whose product does not fit into 64 bits.
  const PyDocument empty = read_pickle(
      tensor_pickle("FloatStorage", 6, "K\x01", "K" + std::string(1, '\0') + huge + huge, "K\x01K\x01K\x01"));
  EXPECT_EQ(empty.root.node()->tensor.numel(), 0);
  EXPECT_TRUE(empty.root.node()->tensor.is_contiguous());
}

TEST(Pickle, NumbersBeyond64BitsAreNotCutToThem) {
  EXPECT_EQ(read_pickle("L9223372036854775807L\n.").root.as_int("n"), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(read_pickle("L9223372036854775808L\n.").root.as_double("n"), 9223372036854775808.0);
  EXPECT_EQ(read_pickle("I-99999999999999999999\n.").root.as_double("n"), -1e20);
  EXPECT_THROW(read_pickle(std::string("I1\0x\n.", 6)), CheckpointError);
}

TEST(Pickle, MemoNumbersMayHaveGaps) {
  const PyDocument document = read_pickle(
      std::string("K\x01r\xff\xff\xff\xffK\x02q\x01K\x03q\0K\x04\x94(j\xff\xff\xff\xffh\x01h\0h\x03l.", 40));
  const auto& items = document.root.as_items("the list");
  ASSERT_EQ(items.size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(items[static_cast<size_t>(i)].as_int("n"), i + 1);
}

TEST(Pickle, DictionarySubclassesKeepAllBatchesOfTheirEntries) {
  const PyDocument document = read_pickle(
      "cmy\nDict\n)\x81(U\x01"
      "aK\x01u(U\x01"
      "bK\x02u.");
  ASSERT_NE(document.root.find("a"), nullptr);
  EXPECT_EQ(document.root.at("b").as_int("b"), 2);
}

TEST(Pickle, LengthsBeyondTheDataAreRefusedBeforeAnythingIsMade) {
  const std::string far("\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
  for (const char* opcode : {"\x8b", "X", "B", "T"}) expect_refused(opcode + far.substr(0, 4) + ".", "ends too early");
  for (const char* opcode : {"\x8d", "\x8e"}) expect_refused(opcode + far + ".", "ends too early");
  EXPECT_NO_THROW(read_pickle("\x95" + far + "N."));  // a frame is a hint for buffering
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
