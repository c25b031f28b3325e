// Plans that do not fit into made-up machines: what the error says, and that what it suggests does fit.
#include <gtest/gtest.h>

#include "engine/plan_builder.h"

namespace deepscale {
namespace {

constexpr int64_t kGib = int64_t{1} << 30;

/// OPT-1.3B.
ModelShapes model() {
  return shapes_from_config(R"({"model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32,
    "num_hidden_layers": 24, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048})",
                            "config.json");
}

Config parsed(const std::string& zero, int ranks = 1) {
  return Config::parse(
      R"({"bf16": {"enabled": true}, "optimizer": {"type": "AdamW"}, "zero_optimization": )" + zero + "}", ranks,
      ParseMode::kZeroInit);
}

World world_of(int ranks, bool accelerator) {
  World world;
  world.ranks = world.ranks_per_host = ranks;
  world.accelerator = accelerator;
  return world;
}

MachineLimits machine(int64_t host_gib, int64_t disk_gib = 100) {
  MachineLimits limits;
  limits.memory = {host_gib * kGib, host_gib * kGib, ""};
  limits.disks = {{"/nvme", "ext4 nvme0n1", disk_gib * kGib}};
  return limits;
}

/// Makes the suggested configuration from scratch and plans it.
void expect_change(const std::optional<PlanAdvice>& advice, const std::string& change, int ranks = 1) {
  ASSERT_TRUE(advice.has_value());
  EXPECT_EQ(advice->change, change);
  EXPECT_EQ(advice->ranks, ranks);
}

TEST(PlanAdviceTest, AFittingPlanNeedsNoExplanation) {
  EXPECT_EQ(explain_misfit(parsed(R"({"stage": 2})"), model(), world_of(1, false), machine(64)), "");
}

TEST(PlanAdviceTest, ADeviceThatIsTooSmallOffloadsTheOptimizerFirst) {
  MachineLimits limits = machine(64);
  limits.device_bytes = 12 * kGib;
  const World world = world_of(1, true);
  const auto advice = nearest_fit(parsed(R"({"stage": 2})"), model(), world, limits);
  expect_change(advice, "zero_optimization.offload_optimizer.device = \"cpu\"");
  EXPECT_TRUE(fits(advice->plan, limits));
  EXPECT_LE(advice->plan.bytes(MemoryPlace::kDevice), 12 * kGib);
}

TEST(PlanAdviceTest, AnEvenSmallerOneOffloadsTheParametersToo) {
  MachineLimits limits = machine(64);
  limits.device_bytes = 5 * kGib;
  expect_change(nearest_fit(parsed(R"({"stage": 2})"), model(), world_of(1, true), limits),
                "zero_optimization.offload_optimizer.device = \"cpu\", zero_optimization.stage = 3, "
                "zero_optimization.offload_param.device = \"cpu\"");
}

TEST(PlanAdviceTest, AHostThatIsTooSmallPutsTheOptimizerIntoFiles) {
  const auto advice =
      nearest_fit(parsed(R"({"stage": 3})"), model(), world_of(1, false), machine(12), /*nvme_path=*/"/nvme");
  expect_change(advice,
                "zero_optimization.offload_optimizer.device = \"nvme\", "
                "zero_optimization.offload_optimizer.nvme_path = \"/nvme\"");
  EXPECT_EQ(advice->plan.optimizer_path, "/nvme");
  EXPECT_GT(advice->plan.bytes(MemoryPlace::kFile), int64_t{12} * 1'300'000'000);
}

TEST(PlanAdviceTest, AFullDiskIsNoPlaceForFiles) {
  const auto advice =
      nearest_fit(parsed(R"({"stage": 3})"), model(), world_of(1, false), machine(12, /*disk_gib=*/1), "/nvme");
  ASSERT_TRUE(advice.has_value());
  EXPECT_GT(advice->ranks, 1);
  EXPECT_EQ(advice->change, "");
}

TEST(PlanAdviceTest, AControlGroupOfFourGigabytesIsNamedWithASettingThatFits) {
  MachineLimits limits = machine(64);
  limits.groups = {{4 * kGib, kGib / 4, "memory.max of /sys/fs/cgroup/job"}};
  const World world = world_of(1, false);
  const Config config = parsed(R"({"stage": 3, "offload_optimizer": {"device": "cpu"}})");
  const std::string text = explain_misfit(config, model(), world, limits, "/nvme");
  const auto has = [&](const std::string& part) { return text.find(part) != std::string::npos; };
  // 16 bytes a parameter and the buffers, less the 3.75 GiB that are left.
  const int64_t needed = make_memory_plan(config, model(), world).host_memory_bytes();
  EXPECT_GT(needed, int64_t{16} * 1'315'758'080);
  EXPECT_TRUE(has("memory.max of /sys/fs/cgroup/job: " + readable_bytes(needed) + " needed, 3.75 GiB available, " +
                  readable_bytes(needed - 15 * kGib / 4) + " missing"))
      << text;
  EXPECT_TRUE(has("what a rank holds most of: optimizer states 9.8")) << text;
  EXPECT_TRUE(has("the nearest setting that fits: zero_optimization.offload_optimizer.device = \"nvme\"")) << text;
  EXPECT_FALSE(has("main memory of the host")) << text;
}

TEST(PlanAdviceTest, AFolderThatNobodyNamedIsAPlaceholder) {
  const std::string text = explain_misfit(parsed(R"({"stage": 3})"), model(), world_of(1, false), machine(12));
  EXPECT_NE(text.find("nvme_path = \"/local/nvme\""), std::string::npos) << text;
  EXPECT_NE(text.find("/local/nvme stands for a folder on a local disk"), std::string::npos) << text;
}

TEST(PlanAdviceTest, LambStaysInMemoryAndAsksForMoreRanks) {
  const Config config =
      Config::parse(R"({"bf16": {"enabled": true}, "optimizer": {"type": "Lamb"}, "zero_optimization": {"stage": 3}})",
                    1, ParseMode::kZeroInit);
  const auto advice = nearest_fit(config, model(), world_of(1, false), machine(12), "/nvme");
  ASSERT_TRUE(advice.has_value());
  EXPECT_GT(advice->ranks, 1);
  EXPECT_EQ(advice->plan.ranks_per_host, 1);
}

TEST(PlanAdviceTest, MoreRanksAreAsFewAsPossible) {
  // Of two ranks each holds 8 bytes a parameter, 9.8 GiB, and its buffers; with everything in files much less.
  const Config config = parsed(R"({"stage": 3})");
  expect_change(nearest_fit(config, model(), world_of(1, false), machine(16, /*disk_gib=*/1), "/nvme"), "", 2);
  MachineLimits limits = machine(2);
  const auto advice = nearest_fit(config, model(), world_of(1, false), limits, "/nvme");
  ASSERT_TRUE(advice.has_value());
  EXPECT_EQ(advice->ranks, 4);
  EXPECT_NE(advice->change.find("offload_param.device = \"nvme\""), std::string::npos);
  EXPECT_TRUE(fits(advice->plan, limits));
}

TEST(PlanAdviceTest, WhenNothingFitsTheTextSaysSo) {
  MachineLimits limits = machine(1, 1);
  limits.memory.available_bytes = 1 << 20;
  const std::string text = explain_misfit(parsed(R"({"stage": 2})"), model(), world_of(1, false), limits, "/nvme");
  EXPECT_NE(text.find("no setting of zero_optimization makes it fit"), std::string::npos) << text;
}

}  // namespace
}  // namespace deepscale
