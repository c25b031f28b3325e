#include "memory/file_tier.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "memory/io_calibration.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

FileTierOptions options_of(const std::string& name, int64_t pool_bytes = 64 << 20) {
  FileTierOptions options;
  options.folder = ::testing::TempDir() + "file_tier_" + name;
  options.pool_bytes = pool_bytes;
  options.queue = AsyncFileOptions{.depth = 8, .block_bytes = 1 << 18};
  return options;
}

void fill(FileTensor& tensor, double value) {
  tensor.load_for_overwrite();
  tensor.tensor().fill_(value);
}

bool holds(FileTensor& tensor, double value) {
  tensor.load();
  return tensor.tensor().eq(value).all().item<bool>();
}

TEST(FileTier, KeepsValuesAndViewsOverStoresAndLoads) {
  const FileTier tier(options_of("values"));
  // Sizes around pages and buffers, and one element.
  for (const int64_t numel : {int64_t{1}, int64_t{1023}, int64_t{1024}, int64_t{100'003}, int64_t{3'000'000}}) {
    FileTensor tensor(tier, numel, at::kFloat, "values");
    EXPECT_FALSE(tensor.loaded());
    const at::Tensor view = tensor.view(numel / 2, numel - numel / 2);
    EXPECT_TRUE(holds(tensor, 0)) << "what was never written is zero";
    tensor.tensor().copy_(at::arange(numel, at::kFloat));
    tensor.start_store();
    EXPECT_EQ(tensor.tensor().storage().nbytes(), 0u);
    EXPECT_EQ(tensor.tensor().numel(), numel);
    tensor.load();
    EXPECT_TRUE(tensor.tensor().equal(at::arange(numel, at::kFloat)));
    EXPECT_EQ(view.size(0) > 0 ? view[0].item<float>() : 0, static_cast<float>(numel / 2));
    tensor.tensor().fill_(-1);
    tensor.drop();
    EXPECT_TRUE(tensor.start_load());
    tensor.load();
    EXPECT_TRUE(tensor.tensor().equal(at::arange(numel, at::kFloat))) << "dropped changes are not in the file";
  }
}

TEST(FileTier, WorksInAPoolThatIsSmallerThanItsTensors) {
  constexpr int64_t kNumel = 1 << 20;
  FileTier tier(options_of("small_pool", 3 * kNumel * 4));
  std::vector<FileTensor> tensors;
  for (int i = 0; i < 12; ++i) tensors.emplace_back(tier, kNumel, at::kFloat, "tensor " + std::to_string(i));
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 12; ++i) {
      if (i + 1 < 12) tensors[i + 1].start_load();
      EXPECT_TRUE(holds(tensors[i], round == 0 ? 0 : i + round - 1));
      tensors[i].tensor().fill_(i + round);
      tensors[i].start_store();
    }
  }
  tier.flush();
  EXPECT_LE(tier.facts().peak_pool_bytes, 3 * kNumel * 4);
  EXPECT_EQ(tier.facts().beyond_pool_bytes, 0);
  EXPECT_EQ(tier.facts().file_bytes, 12 * kNumel * 4);
  EXPECT_EQ(tier.facts().written_bytes, 3 * 12 * kNumel * 4);
  EXPECT_GT(tier.facts().read_bytes, 0);
  EXPECT_GT(tier.facts().wait_seconds, 0);
  FileTierFacts both = tier.facts();
  both += tier.facts();
  EXPECT_EQ(both.read_bytes, 2 * tier.facts().read_bytes);
  EXPECT_EQ(both.depth, 8);
}

TEST(FileTier, TensorsKnowTheirTier) {
  const FileTier tier(options_of("known"));
  const FileTier other(options_of("known"));
  const FileTensor tensor(tier, 10, at::kFloat, "values");
  EXPECT_EQ(tensor.tier(), tier);
  EXPECT_FALSE(tensor.tier() == other);
}

TEST(FileTier, MeasuresItsDiskWhenNobodySaysWhatItWants) {
  FileTierOptions options = options_of("measured");
  options.queue.reset();
  FileTier tier(options);
  const AsyncFileOptions found = tuned_io(options.folder).settings.queue_options();
  EXPECT_EQ(tier.facts().depth, found.depth);
  EXPECT_EQ(tier.facts().block_bytes, found.block_bytes);
}

TEST(FileTier, TakesMemoryBesideThePoolWhenAllOfItIsInUse) {
  constexpr int64_t kNumel = 1 << 20;
  FileTier tier(options_of("beyond", kNumel * 4));
  FileTensor one(tier, kNumel, at::kFloat, "one");
  FileTensor two(tier, kNumel, at::kFloat, "two");
  fill(one, 1);
  fill(two, 2);
  EXPECT_EQ(tier.facts().beyond_pool_bytes, kNumel * 4);
  two.start_store();
  tier.flush();
  EXPECT_FALSE(two.start_load()) << "reading ahead is not worth memory that was not planned";
  one.start_store();
  EXPECT_TRUE(holds(two, 2));
  EXPECT_TRUE(holds(one, 1));
}

TEST(FileTier, GivesPlacesInTheFileToOthers) {
  FileTier tier(options_of("places"));
  for (int round = 0; round < 5; ++round) {
    FileTensor one(tier, 5000, at::kFloat, "one");
    FileTensor two(tier, 7000, at::kFloat, "two");
    fill(one, round);
    one.start_store();
    EXPECT_TRUE(holds(two, 0)) << "nothing of an earlier tensor shows";
    EXPECT_TRUE(holds(one, round));
  }
  EXPECT_EQ(tier.facts().file_bytes, 5 * 4096 + 7 * 4096);
}

TEST(FileTier, LeavesNoFileBehind) {
  const FileTierOptions options = options_of("nameless");
  const FileTier tier(options);
  FileTensor tensor(tier, 5000, at::kFloat, "values");
  fill(tensor, 7);
  tensor.start_store();
  EXPECT_TRUE(std::filesystem::is_empty(options.folder));
  EXPECT_TRUE(holds(tensor, 7));
}

TEST(FileTier, SaysWhatIsWrongWithAFolder) {
  FileTierOptions options = options_of("not_a_folder");
  options.folder = "/proc/version/x";
  EXPECT_THROW(FileTier{options}, IoError);
  options.folder = "file_tier_test_" + std::to_string(this_process_id());
  std::ofstream(options.folder) << "a file";
  try {
    const FileTier tier(options);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_EQ(std::string(error.what()), "cannot make the folder " + options.folder + ": it is a file; name a folder");
  }
  std::filesystem::remove(options.folder);
}

TEST(FileTier, NamesWhatHasNoRoomOnTheDisk) {
  const FileTier tier(options_of("no_room"));
  try {
    const FileTensor tensor(tier, int64_t{1} << 50, at::kFloat, "exp_avg of layers.3");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("no room for exp_avg of layers.3"), std::string::npos) << error.what();
  }
}

TEST(FileTier, TensorsOutliveTheirTier) {
  FileTensor tensor;
  {
    const FileTier tier(options_of("outlived"));
    tensor = FileTensor(tier, 5000, at::kBFloat16, "values");
    fill(tensor, 3);
    tensor.start_store();
  }
  EXPECT_TRUE(holds(tensor, 3));
}

}  // namespace
}  // namespace deepscale
