// Tensors between torch and files of torch.save; and torch itself reads what we write.
#include "checkpoint/torch_file.h"

#include <ATen/Functions.h>
#include <caffe2/serialize/inline_container.h>
#include <gtest/gtest.h>

#include "deepscale/error.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class TorchFiles : public ::testing::Test {
 protected:
  void SetUp() override { path_ = ::testing::TempDir() + "torch_file_test_" + std::to_string(this_process_id()); }
  void TearDown() override { remove_file(path_); }
  std::string path_;
};

TEST_F(TorchFiles, TensorsOfEveryTypeAndStrideComeBack) {
  const std::vector<at::Tensor> tensors = {
      at::arange(6, at::kFloat).view({2, 3}),
      at::full({2}, 1.5, at::kBFloat16),
      at::full({}, 7, at::kLong),
      at::empty({0, 3}, at::kHalf),
      at::arange(6, at::kDouble).view({2, 3}).t(),
      at::ones({3}, at::kBool),
      at::arange(10, at::kInt).narrow(0, 3, 4),
  };
  PyDocument document;
  PyNode* const root = document.list();
  document.root = root;
  for (const at::Tensor& tensor : tensors) root->add(add_tensor(document, tensor));
  write_torch_file(path_, document);
  const TorchFile file = TorchFile::open(path_);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const PyTensor& stored = file.root().as_items("")[i].as_tensor("");
    const at::Tensor back = file.read(stored);
    EXPECT_EQ(back.scalar_type(), tensors[i].scalar_type()) << i;
    EXPECT_TRUE(at::equal(back, tensors[i])) << i;
    if (tensors[i].numel() < 2) continue;
    EXPECT_TRUE(at::equal(file.read_range(stored, 1, 2 - 1), tensors[i].reshape({-1}).narrow(0, 1, 1))) << i;
    EXPECT_THROW((void)file.read_range(stored, 1, tensors[i].numel()), CheckpointError);
  }
  EXPECT_THROW(add_tensor(document, at::zeros({1}, at::kComplexFloat)), UnsupportedError);
}

TEST_F(TorchFiles, TorchsOwnReaderTakesTheFile) {
  PyDocument document;
  document.root = add_tensor(document, at::arange(1000, at::kFloat));
  write_torch_file(path_, document);
  caffe2::serialize::PyTorchStreamReader reader(path_);
  EXPECT_EQ(reader.getRecordSize("data/0"), 4000u);
  EXPECT_EQ(reader.getRecordOffset("data/0") % 64, 0u);
  const auto [data, size] = reader.getRecord("data/0");  // compares the checksum
  EXPECT_EQ(static_cast<const float*>(data.get())[999], 999.0f);
  EXPECT_EQ(size, 4000u);
}

}  // namespace
}  // namespace deepscale
