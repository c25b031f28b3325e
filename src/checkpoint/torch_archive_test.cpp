// Files of torch.save without torch: what is written is read, and a file cut anywhere is refused.
#include "checkpoint/torch_archive.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "checkpoint/test_support.h"
#include "deepscale/error.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class TorchArchives : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "torch_archive_test_\xC3\xA9_" + std::to_string(this_process_id()) + ".pt";
  }
  void TearDown() override { remove_file(path_); }
  std::string path_;
};

template <typename T>
std::vector<T> read(TorchArchive& file, const PyTensor& tensor, int64_t begin, int64_t length) {
  std::vector<T> values(static_cast<size_t>(length));
  file.read_storage(tensor, begin, length, values.data());
  return values;
}

TEST_F(TorchArchives, WhatIsWrittenIsRead) {
  write_torch_file(path_, test::sample_document());
  TorchArchive file = TorchArchive::open(path_);
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
  EXPECT_EQ(tensor.sizes, (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(tensor.is_contiguous());
  EXPECT_EQ(read<float>(file, tensor, 0, 6), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(read<float>(file, tensor, 2, 3), (std::vector<float>{2, 3, 4}));
  EXPECT_EQ(root.at("again").as_tensor("").record, tensor.record);  // stored once
  EXPECT_EQ(read<uint16_t>(file, root.at("half").as_tensor(""), 0, 2), (std::vector<uint16_t>{0x3FC0, 0x3FC0}));
  EXPECT_EQ(read<int64_t>(file, root.at("scalar").as_tensor(""), 0, 1), std::vector<int64_t>{7});
  EXPECT_EQ(root.at("nothing").as_tensor("").numel(), 0);
  EXPECT_THROW((void)read<float>(file, tensor, 4, 3), CheckpointError);
  EXPECT_THROW((void)root.at("missing"), CheckpointError);
  EXPECT_THROW((void)root.at("text").as_int("it"), CheckpointError);
}

TEST_F(TorchArchives, AFileCutAnywhereIsRefused) {
  write_torch_file(path_, test::sample_document());
  std::ostringstream whole;
  whole << std::ifstream(native_path(path_).c_str(), std::ios::binary).rdbuf();
  const std::string bytes = whole.str();
  for (size_t length = 0; length < bytes.size(); length += length + 70 < bytes.size() ? 61 : 1) {
    std::ofstream(native_path(path_).c_str(), std::ios::binary | std::ios::trunc) << bytes.substr(0, length);
    EXPECT_THROW(TorchArchive::open(path_), CheckpointError) << length;
  }
  remove_file(path_);
  EXPECT_THROW(TorchArchive::open(path_), CheckpointError);
}

TEST_F(TorchArchives, ADamagedPickleIsRefusedByItsChecksum) {
  write_torch_file(path_, test::sample_document());
  std::ostringstream whole;
  whole << std::ifstream(native_path(path_).c_str(), std::ios::binary).rdbuf();
  std::string bytes = whole.str();
  const size_t place = bytes.find("some.module");
  ASSERT_NE(place, std::string::npos);
  bytes[place] = 'S';
  std::ofstream(native_path(path_).c_str(), std::ios::binary | std::ios::trunc) << bytes;
  EXPECT_THROW(TorchArchive::open(path_), CheckpointError);
}

}  // namespace
}  // namespace deepscale
