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
  // Sizes around pages and buffers, one element, and none.
  for (const int64_t numel : std::initializer_list<int64_t>{0, 1, 1023, 1024, 100'003, 3'000'000}) {
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

/// Loads and stores each of them; what the tier facts say then.
FileTierFacts visit_all(FileTier& tier, std::vector<FileTensor>& tensors) {
  for (int round = 0; round < 3; ++round) {
    for (FileTensor& tensor : tensors) {
      tensor.load();
      tensor.start_store();
      tier.flush();
    }
  }
  return tier.facts();
}

TEST(FileTier, APoolWithRoomForAllTensorsTakesNoMoreThanTheirBuffers) {
  FileTier tier(options_of("own_sizes"));
  std::vector<FileTensor> tensors;
  for (const int64_t mib : {4, 3, 2, 3, 4}) tensors.emplace_back(tier, mib << 18, at::kFloat, "weights");
  // A buffer that is too large must not be taken from the tensor that needs it.
  for (FileTensor& tensor : tensors) fill(tensor, 1);
  for (FileTensor& tensor : tensors) tensor.start_store();
  tier.flush();
  for (const int i : {2, 0, 1, 3, 4}) tensors[i].load();
  EXPECT_EQ(tier.facts().peak_pool_bytes, 16 << 20);
  tier = FileTier(options_of("own_sizes_in_turn"));
  tensors.clear();
  for (const int64_t mib : {4, 3}) tensors.emplace_back(tier, mib << 18, at::kFloat, "weights");
  fill(tensors[0], 1);
  tensors[0].start_store();
  tier.flush();
  fill(tensors[1], 1);
  tensors[0].load();
  EXPECT_EQ(tier.facts().peak_pool_bytes, 7 << 20);
}

TEST(FileTier, APoolThatIsCutGivesItsMemoryBack) {
  FileTier tier(options_of("cut"));
  std::vector<FileTensor> tensors;
  for (int i = 0; i < 6; ++i) tensors.emplace_back(tier, 1 << 18, at::kFloat, "weights " + std::to_string(i));
  for (FileTensor& tensor : tensors) fill(tensor, 1);
  for (int i = 1; i < 6; ++i) tensors[i].start_store();
  tier.flush();
  EXPECT_EQ(tier.facts().pool_bytes, 6 << 20);
  tier.set_pool_bytes(2 << 20);
  EXPECT_EQ(tier.facts().pool_bytes, 1 << 20) << "what is loaded";
  tier.set_pool_bytes(1 << 20);  // of two users who share it, who needs more counts
  tensors[0].start_store();
  const FileTierFacts facts = visit_all(tier, tensors);
  EXPECT_LE(facts.peak_pool_bytes, 2 << 20);
  EXPECT_EQ(facts.beyond_pool_bytes, 0);
  for (FileTensor& tensor : tensors) EXPECT_TRUE(holds(tensor, 1));
}

TEST(FileTier, WhatIsInUseWhenThePoolIsCutLeavesItLater) {
  FileTier tier(options_of("cut_in_use"));
  std::vector<FileTensor> tensors;
  for (int i = 0; i < 6; ++i) tensors.emplace_back(tier, 1 << 18, at::kFloat, "weights " + std::to_string(i));
  for (FileTensor& tensor : tensors) fill(tensor, 1);
  tier.set_pool_bytes(2 << 20);
  EXPECT_EQ(tier.facts().pool_bytes, 6 << 20);
  for (FileTensor& tensor : tensors) tensor.start_store();
  tier.flush();
  EXPECT_LE(tier.facts().pool_bytes, 2 << 20);
}

TEST(FileTier, SmallBuffersLeaveThePlacesForPinnedOnesToLargeOnes) {
  FileTierOptions options = options_of("many_small");
  options.pin = true;
  FileTier tier(options);
  std::vector<FileTensor> tensors;
  for (int i = 0; i < 300; ++i) tensors.emplace_back(tier, 64, at::kFloat, "bias");
  tensors.emplace_back(tier, 1 << 18, at::kFloat, "weights");
  for (FileTensor& tensor : tensors) fill(tensor, 1);
  const FileTierFacts facts = tier.facts();
  if (!facts.engine.reason.empty() || facts.pin_refusal.find("ulimit") != std::string::npos) {
    GTEST_SKIP() << "nothing can be pinned here: " << facts.engine.reason << facts.pin_refusal;
  }
  EXPECT_EQ(facts.pin_refusal, "");
  EXPECT_EQ(facts.pinned_bytes, 1 << 20);
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
