// Pickles and torch files: what is written is read, hostile and cut bytes end in CheckpointError, layouts agree with
// arithmetic by hand.
#include "checkpoint/pickle.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "checkpoint/state_layout.h"
#include "checkpoint/torch_file.h"
#include "deepscale/error.h"
#include "platform/files.h"

namespace deepscale {
namespace {

PyDocument sample() {
  PyDocument document;
  PyNode* root = document.ordered_dict();
  document.root = root;
  root->set("none", PyValue());
  root->set("flags", document.tuple({true, false}));
  root->set("numbers", document.tuple({0, -1, 70000, int64_t{1} << 40, int64_t{-1} << 62, 2.5, -1e300}));
  root->set("text", "\xc3\xa4 text");
  PyNode* inner = document.dict();
  inner->set(3, "three");
  root->set("inner", inner);
  root->set("shape", document.size({2, 3}));
  PyNode* object = document.make(PyKind::kObject, "some.module.Class");
  PyNode* attributes = document.dict();
  attributes->set("cur_scale", 64.0);
  object->state = attributes;
  root->set("object", object);
  PyNode* tensor = document.tensor(at::arange(6, at::kFloat).view({2, 3}));
  root->set("tensor", tensor);
  root->set("again", tensor);
  root->set("half", document.tensor(at::full({2}, 1.5, at::kBFloat16)));
  root->set("scalar", document.tensor(at::full({}, 7, at::kLong)));
  root->set("nothing", document.tensor(at::empty({0}, at::kHalf)));
  return document;
}

class TorchFiles : public ::testing::Test {
 protected:
  void SetUp() override { path_ = ::testing::TempDir() + "pickle_test_" + std::to_string(::getpid()) + ".pt"; }
  void TearDown() override { remove_file(path_); }
  std::string path_;
};

TEST_F(TorchFiles, WhatIsWrittenIsRead) {
  write_torch_file(path_, sample());
  const TorchFile file = TorchFile::open(path_);
  const PyValue& root = file.root();
  EXPECT_TRUE(root.at("none").is_none());
  EXPECT_EQ(*root.at("flags").as_items("")[0].get_if<bool>(), true);
  const auto& numbers = root.at("numbers").as_items("");
  EXPECT_EQ(numbers[1].as_int(""), -1);
  EXPECT_EQ(numbers[2].as_int(""), 70000);
  EXPECT_EQ(numbers[3].as_int(""), int64_t{1} << 40);
  EXPECT_EQ(numbers[4].as_int(""), int64_t{-1} << 62);
  EXPECT_EQ(numbers[5].as_double(""), 2.5);
  EXPECT_EQ(numbers[6].as_double(""), -1e300);
  EXPECT_EQ(root.at("text").as_string(""), "\xc3\xa4 text");
  EXPECT_EQ(root.at("inner").find(int64_t{3})->as_string(""), "three");
  EXPECT_EQ(root.at("shape").as_shape(""), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(root.at("object").node()->type, "some.module.Class");
  EXPECT_EQ(root.at("object").at("cur_scale").as_double(""), 64.0);
  const PyTensor& tensor = root.at("tensor").as_tensor("");
  EXPECT_TRUE(at::equal(file.read(tensor), at::arange(6, at::kFloat).view({2, 3})));
  EXPECT_TRUE(at::equal(file.read_range(tensor, 2, 3), at::arange(2, 5, at::kFloat)));
  EXPECT_EQ(root.at("again").as_tensor("").record, tensor.record);  // stored once
  EXPECT_EQ(file.read(root.at("half").as_tensor("")).sum().item<double>(), 3.0);
  EXPECT_EQ(file.read(root.at("scalar").as_tensor("")).item<int64_t>(), 7);
  EXPECT_EQ(file.read(root.at("nothing").as_tensor("")).numel(), 0);
  EXPECT_THROW((void)file.read_range(tensor, 4, 3), CheckpointError);
  EXPECT_THROW((void)root.at("missing"), CheckpointError);
  EXPECT_THROW((void)root.at("text").as_int("it"), CheckpointError);
}

TEST_F(TorchFiles, AFileCutAnywhereIsRefused) {
  write_torch_file(path_, sample());
  std::ostringstream whole;
  whole << std::ifstream(path_, std::ios::binary).rdbuf();
  const std::string bytes = whole.str();
  for (size_t length = 0; length < bytes.size(); length += length + 70 < bytes.size() ? 61 : 1) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes.substr(0, length);
    EXPECT_THROW(TorchFile::open(path_), CheckpointError) << length;
  }
  remove_file(path_);
  EXPECT_THROW(TorchFile::open(path_), CheckpointError);
}

TEST(Pickle, CutOrChangedBytesNeverDoMoreThanThrow) {
  const std::string bytes = write_pickle(sample()).bytes;
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
