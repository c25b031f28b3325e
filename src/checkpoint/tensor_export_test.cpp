#include "checkpoint/tensor_export.h"

#include <gmock/gmock.h>

#include <cmath>

#include "base/error.h"
#include "checkpoint/ckpt_listing.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tag_verify.h"
#include "checkpoint/tensor_diff.h"
#include "checkpoint/tensor_windows.h"
#include "checkpoint/tool_test_support.h"

namespace deepscale {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class TensorExportTest : public test::CheckpointToolTest {
 protected:
  static Tensors model() {
    return {{"fp32/layers.2.weight", ramp(300'000)},
            {"fp32/layers.10.weight", ramp(70, 0.5f)},
            {"exp_avg/layers.2.weight", ramp(300'000, 2.0f)},
            {"exp_avg/layers.10.weight", ramp(70)},
            {"module/table", ramp(5)},
            {"module/empty.one", ramp(1)}};
  }
};

TEST_F(TensorExportTest, WindowsGiveEveryElementOnceInOrder) {
  save(root_, "t", 3, model());
  const auto source = TensorSource::open(root_ + "/t");
  std::vector<SourceRange> ranges;
  for (int t = 0; t < static_cast<int>(source->tensors().size()); ++t) {
    ranges.push_back({t, 0, source->tensors()[t].numel(), nullptr});
  }
  for (const int64_t window : {int64_t{7}, int64_t{30'000}, kWindowNumel}) {
    Tensors found;
    TensorWindows windows(*source, ranges, window);
    for (int count = 0; window != 7 || count < 20; ++count) {  // one is left that reads ahead
      const auto& pieces = windows.next();
      if (pieces.empty()) break;
      for (const TensorPiece& piece : pieces) {
        auto& values = found[source->tensors()[piece.tensor].name];
        EXPECT_EQ(static_cast<int64_t>(values.size()), piece.offset);
        const auto* const data = reinterpret_cast<const float*>(piece.data);
        values.insert(values.end(), data, data + piece.numel);
      }
    }
    if (window != 7) {
      EXPECT_EQ(found, model());
    }
  }
}

TEST_F(TensorExportTest, CheckpointsOfOtherNumbersOfRanksAreEqual) {
  save(root_, "one", 1, model());
  save(root_, "three", 3, model());
  const auto one = TensorSource::open(root_ + "/one"), three = TensorSource::open(root_ + "/three");
  const DiffReport report = compare_tensors(*one, *three, {});
  EXPECT_TRUE(report.equal());
  EXPECT_EQ(report.identical, 6);
}

TEST_F(TensorExportTest, DifferencesAreCountedByElement) {
  Tensors changed = model();
  changed["fp32/layers.2.weight"][123'456] += 4.0f;
  changed["fp32/layers.2.weight"][299'999] -= 0.5f;
  changed["exp_avg/layers.10.weight"][3] = std::nanf("");
  changed["exp_avg/layers.10.weight"][0] = -0.0f;  // another value than 0 by its bits
  changed.erase("module/table");
  save(root_, "a", 1, model());
  save(root_, "b", 2, changed);
  const auto a = TensorSource::open(root_ + "/a"), b = TensorSource::open(root_ + "/b");
  const DiffReport report = compare_tensors(*a, *b, {});
  std::map<std::string, TensorDifference> found;
  for (const auto& difference : report.differences) found[difference.name] = difference;
  ASSERT_THAT(found, SizeIs(3));
  EXPECT_EQ(found["fp32/layers.2.weight"].different, 2);
  EXPECT_EQ(found["fp32/layers.2.weight"].first_different, 123'456);
  EXPECT_EQ(found["fp32/layers.2.weight"].largest, 4.0);
  EXPECT_EQ(found["exp_avg/layers.10.weight"].different, 2);
  EXPECT_EQ(found["exp_avg/layers.10.weight"].not_numbers, 1);
  EXPECT_EQ(found["exp_avg/layers.10.weight"].largest, 0.0);
  EXPECT_EQ(found["module/table"].what, "only in the first");
  EXPECT_THAT(compare_tensors(*a, *b, {.weights_only = true}).differences, SizeIs(2));
}

TEST_F(TensorExportTest, WeightsComeInTheOrderOfTheirNamesAndInParts) {
  save(root_, "t", 2, model());
  const auto source = TensorSource::open(root_ + "/t");
  const auto files = write_weights(*source, root_ + "/out", {.dtype = DType::kBFloat16, .shard_bytes = 200});
  EXPECT_EQ(files.tensors, 4);
  EXPECT_EQ(files.bytes, 2 * (300'000 + 70 + 5 + 1));
  EXPECT_THAT(files.names, ElementsAre("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                       "model.safetensors.index.json"));
  EXPECT_THAT(list_directory(root_ + "/out"), SizeIs(3));
  {  // Windows replaces no file that is open
    auto big = SafetensorsFile::open(root_ + "/out/" + files.names[0]);
    ASSERT_NE(big.find("layers.2.weight"), nullptr);
    EXPECT_EQ(big.header().metadata.at("head.weight"), "layers.2.weight");
    uint16_t value = 0;
    big.read(*big.find("layers.2.weight"), 2 * 3, 2, &value);
    EXPECT_EQ(value, 0x4040);  // 3.0
    const auto exported = TensorSource::open(root_ + "/out");
    for (const auto& difference : compare_tensors(*source, *exported, {.weights_only = true}).differences) {
      EXPECT_THAT(difference.what, HasSubstr("dtype float32, bfloat16"));
    }
  }
  EXPECT_THROW(write_weights(*source, root_ + "/out", {}), ConfigError);
  write_weights(*source, root_ + "/out", {.overwrite = true});
  EXPECT_THAT(list_directory(root_ + "/out"), ElementsAre("model.safetensors"));
  EXPECT_TRUE(compare_tensors(*source, *TensorSource::open(root_ + "/out"), {.weights_only = true}).equal());
}

TEST_F(TensorExportTest, DamageEndsAConversionWithoutFiles) {
  save(root_, "t", 2, model());
  flip(root_ + "/t/rank_00001.safetensors", *file_size(root_ + "/t/rank_00001.safetensors") / 2);
  const auto source = TensorSource::open(root_ + "/t");
  EXPECT_THROW(write_weights(*source, root_ + "/out", {}), CheckpointError);
  EXPECT_THAT(list_directory(root_ + "/out"), IsEmpty());
  EXPECT_THROW(reshard_checkpoint(root_ + "/t", root_ + "/copies", {.ranks = 3, .tag = "t"}), CheckpointError);
  EXPECT_THAT(list_directory(root_ + "/copies"), IsEmpty());
}

TEST_F(TensorExportTest, SlicesForOtherRanksHoldTheSame) {
  save(root_, "t", 2, model());
  for (const int ranks : {1, 4, 7}) {
    const std::string tag = "for_" + std::to_string(ranks);
    reshard_checkpoint(root_ + "/t", root_ + "/copies", {.ranks = ranks, .tag = tag});
    const std::string folder = root_ + "/copies/" + tag;
    EXPECT_THAT(verify_checkpoint(folder, {}).problems, IsEmpty());
    const auto original = TensorSource::open(root_ + "/t"), copy = TensorSource::open(folder);
    EXPECT_TRUE(compare_tensors(*original, *copy, {}).equal());
    EXPECT_EQ(copy->aliases(), original->aliases());
    const Manifest manifest = read_manifest(folder);
    EXPECT_EQ(manifest.files.size(), static_cast<size_t>(ranks) + 1);
    for (const ManifestTensor& tensor : manifest.tensors) {
      EXPECT_EQ(tensor.slices.size(), tensor.numel() > 64 * ranks ? static_cast<size_t>(ranks) : 1u) << tensor.name;
    }
  }
  EXPECT_EQ(latest_tag(root_ + "/copies"), "for_7");
  EXPECT_THROW(reshard_checkpoint(root_ + "/t", root_, {.ranks = 1, .tag = "t"}), ConfigError);
  reshard_checkpoint(root_ + "/t", root_, {.ranks = 1, .tag = "t", .overwrite = true});
  EXPECT_EQ(read_manifest(root_ + "/t").files.size(), 2u);
  EXPECT_THAT(verify_checkpoint(root_ + "/t", {}).problems, IsEmpty());
}

TEST(TensorNames, AreInNaturalOrder) {
  EXPECT_TRUE(natural_less("layers.9.weight", "layers.10.bias"));
  EXPECT_FALSE(natural_less("layers.10.bias", "layers.9.weight"));
  EXPECT_TRUE(natural_less("a", "a1"));
  EXPECT_TRUE(natural_less("a2b", "a10a"));
  EXPECT_FALSE(natural_less("same", "same"));
  EXPECT_NE(natural_less("a01", "a1"), natural_less("a1", "a01"));
}

TEST(TensorNames, FitPatterns) {
  EXPECT_TRUE(fits_pattern("fp32/layers.10.weight", "fp32/layers.*.weight"));
  EXPECT_TRUE(fits_pattern("fp32/layers.1.weight", "*layers.[0-3].*"));
  EXPECT_FALSE(fits_pattern("fp32/layers.7.weight", "*layers.[0-3].*"));
  EXPECT_TRUE(fits_pattern("fp32/layers.7.weight", "*layers.[!0-3].*"));
  EXPECT_TRUE(fits_pattern("aab", "*ab"));
  EXPECT_FALSE(fits_pattern("abc", "ab"));
  EXPECT_FALSE(fits_pattern("ab", "ab?"));
  EXPECT_TRUE(fits_pattern("a[b", "a[b"));
  EXPECT_TRUE(fits_pattern("", "*"));
}

TEST(Sizes, AreReadWithTheirUnits) {
  EXPECT_EQ(parse_bytes("5GB", "--x"), 5'000'000'000);
  EXPECT_EQ(parse_bytes("1.5 MiB", "--x"), 1'572'864);
  EXPECT_EQ(parse_bytes("100", "--x"), 100);
  for (const char* wrong : {"", "GB", "5 apples", "-1GB", "0", "1e30", "5GBB"}) {
    EXPECT_THROW((void)parse_bytes(wrong, "--x"), ConfigError) << wrong;
  }
}

TEST(Ages, AreShort) {
  EXPECT_EQ(age_text(1000, 0), "-");
  EXPECT_EQ(age_text(1000, 990), "10 s");
  EXPECT_EQ(age_text(100'000, 90'000), "3 h");
  EXPECT_EQ(age_text(1'000'000, 1), "12 d");
}

}  // namespace
}  // namespace deepscale
