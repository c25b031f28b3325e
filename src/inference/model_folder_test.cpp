#include "inference/model_folder.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "deepscale/error.h"
#include "inference/test_models.h"

namespace deepscale {
namespace {

using test::Folder;

std::string error_of(const Folder& folder) {
  try {
    (void)ModelFolder::open(folder.path());
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

TEST(ModelFolder, ReadsTensorsOfSeveralFiles) {
  const Folder folder("model");
  folder.write("config.json", "{}");
  const at::Tensor a = at::randn({3, 5}), b = at::randn({7}).to(at::kHalf);
  test::write_tensors(folder.file("one.safetensors"), {{"a", a}});
  test::write_tensors(folder.file("two.safetensors"), {{"b", b}});
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  ModelFolder model = ModelFolder::open(folder.path());
  const at::Tensor same = at::empty({3, 5}), widened = at::empty({7});
  model.read("a", same);
  model.read("b", widened);
  EXPECT_TRUE(same.equal(a));
  EXPECT_TRUE(widened.equal(b.to(at::kFloat)));
  EXPECT_EQ(model.bytes_read(), 3 * 5 * 4 + 7 * 2);
  EXPECT_THROW(model.read("c", same), CheckpointError);
  EXPECT_THROW(model.read("a", widened), CheckpointError);
}

TEST(ModelFolder, LargeTensorsAreConvertedInPieces) {
  const Folder folder("model");
  folder.write("config.json", "{}");
  const at::Tensor values = at::randn({5'000'001});
  test::write_tensors(folder.file("model.safetensors"), {{"a", values}});
  const at::Tensor narrow = at::empty({5'000'001}, at::kBFloat16);
  ModelFolder::open(folder.path()).read("a", narrow);
  EXPECT_TRUE(narrow.equal(values.to(at::kBFloat16)));
}

TEST(ModelFolder, DamagedFoldersAreNamed) {
  const Folder folder("model");
  EXPECT_NE(error_of(folder).find("config.json cannot be read"), std::string::npos);
  folder.write("config.json", "[1");
  EXPECT_NE(error_of(folder).find("is not a JSON object"), std::string::npos);
  folder.write("config.json", "{}");
  EXPECT_NE(error_of(folder).find("model.safetensors"), std::string::npos);
  folder.write("model.safetensors", "short");
  EXPECT_NE(error_of(folder).find("model.safetensors"), std::string::npos);
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "../secret.safetensors"}})");
  EXPECT_NE(error_of(folder).find("no name of a file beside it"), std::string::npos);
  folder.write("model.safetensors.index.json", "{}");
  EXPECT_NE(error_of(folder).find("weight_map"), std::string::npos);
  test::write_tensors(folder.file("one.safetensors"), {{"a", at::zeros({2})}});
  folder.write("model.safetensors.index.json", R"({"weight_map": {"b": "one.safetensors"}})");
  EXPECT_NE(error_of(folder).find("tensor b is not in one.safetensors"), std::string::npos);
}

TEST(ModelFolder, ATensorThatIsNoFloatIsRefused) {
  const Folder folder("model");
  folder.write("config.json", "{}");
  test::write_tensors(folder.file("model.safetensors"), {{"a", at::zeros({4}, at::kLong)}});
  ModelFolder model = ModelFolder::open(folder.path());
  EXPECT_THROW(model.read("a", at::zeros({4})), CheckpointError);
}

}  // namespace
}  // namespace deepscale
