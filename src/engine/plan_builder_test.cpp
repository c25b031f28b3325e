// Figures computed by hand. The model of these tests has no padding: every matrix is a multiple of 8 norm blocks.
#include "engine/plan_builder.h"

#include <gtest/gtest.h>

#include "engine/plan_sizes.h"
#include "engine/plan_units.h"
#include "memory/file_shares.h"

namespace deepscale {
namespace {

constexpr int64_t kMatrix = 1024 * 1024;
constexpr int kLayers = 16;
constexpr int64_t kModel = kLayers * kMatrix;

ModelShapes model(int layers = kLayers, int64_t rows = 1024) {
  ModelShapes shapes;
  for (int i = 0; i < layers; ++i) {
    const std::string unit = "layers." + std::to_string(i);
    shapes.params.push_back({unit + ".weight", {rows, 1024}, DType::kFloat32, true, unit});
  }
  return shapes;
}

World world_of(int ranks, bool accelerator = false) {
  World world;
  world.ranks = ranks;
  world.ranks_per_host = ranks;
  world.accelerator = accelerator;
  world.shares_memory = false;
  return world;
}

MemoryPlan plan_of(const std::string& json, const World& world, const ModelShapes& shapes = model()) {
  return make_memory_plan(Config::parse(json, world.ranks, ParseMode::kZeroInit), shapes, world);
}

std::string config(int stage, const std::string& zero = "", const std::string& more = "") {
  return R"({"bf16": {"enabled": true}, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": )" +
         std::to_string(stage) + zero + "}" + more + "}";
}

/// Bytes of states per parameter of the model, as in table 1 of the ZeRO paper.
double states_per_parameter(const MemoryPlan& plan) {
  return static_cast<double>(plan.bytes(PlannedState::kParameters) + plan.bytes(PlannedState::kGradients) +
                             plan.bytes(PlannedState::kMaster) + plan.bytes(PlannedState::kOptimizer)) /
         static_cast<double>(kModel);
}

TEST(PlanBuilderTest, StatesOfAdamInMixedPrecisionAreThoseOfTheZeroPaper) {
  // Rajbhandari et al. 2020 (arXiv 1910.02054), section 5: 2 + 2 + 12 bytes, divided over N ranks by stage.
  EXPECT_EQ(states_per_parameter(plan_of(config(0), world_of(1))), 16.0);
  EXPECT_EQ(states_per_parameter(plan_of(config(0), world_of(8))), 16.0);
  EXPECT_EQ(states_per_parameter(plan_of(config(1), world_of(8))), 4.0 + 12.0 / 8);
  EXPECT_EQ(states_per_parameter(plan_of(config(2), world_of(8))), 2.0 + 14.0 / 8);
  EXPECT_EQ(states_per_parameter(plan_of(config(3), world_of(8))), 16.0 / 8);
  const MemoryPlan plan = plan_of(config(2), world_of(8));
  EXPECT_EQ(plan.bytes(PlannedState::kParameters), 2 * kModel);
  EXPECT_EQ(plan.bytes(PlannedState::kGradients), 2 * kModel / 8);
  EXPECT_EQ(plan.bytes(PlannedState::kMaster), 4 * kModel / 8);
  EXPECT_EQ(plan.bytes(PlannedState::kOptimizer), 8 * kModel / 8);
  EXPECT_EQ(plan.params_numel, kModel);
  EXPECT_EQ(plan.trainable_numel, kModel);
}

TEST(PlanBuilderTest, Fp32NeedsNoMasterCopy) {
  const MemoryPlan plan = plan_of(R"({"optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 2}})", world_of(4));
  EXPECT_EQ(plan.bytes(PlannedState::kMaster), 0);
  EXPECT_EQ(states_per_parameter(plan), 4.0 + 12.0 / 4);
}

TEST(PlanBuilderTest, OptimizersDifferInTheirStates) {
  const auto states = [](const std::string& optimizer) {
    return plan_of(R"({"bf16": {"enabled": true}, "optimizer": )" + optimizer + "}", world_of(1))
               .bytes(PlannedState::kOptimizer) /
           kModel;
  };
  EXPECT_EQ(states(R"({"type": "Adam"})"), 8);
  EXPECT_EQ(states(R"({"type": "Lamb"})"), 8);
  EXPECT_EQ(states(R"({"type": "Lion"})"), 4);
  EXPECT_EQ(states(R"({"type": "Adagrad"})"), 4);
  EXPECT_EQ(states(R"({"type": "SGD"})"), 0);
  EXPECT_EQ(states(R"({"type": "SGD", "params": {"momentum": 0.9}})"), 4);
}

TEST(PlanBuilderTest, WithoutAnOptimizerTwoStatesArePlannedAndSaid) {
  const MemoryPlan plan = plan_of(R"({"bf16": {"enabled": true}})", world_of(1));
  EXPECT_EQ(plan.bytes(PlannedState::kOptimizer), 8 * kModel);
  ASSERT_FALSE(plan.notes.empty());
  EXPECT_NE(plan.notes[0].find("no optimizer"), std::string::npos);
  World world = world_of(1);
  world.optimizer = PlannedOptimizer{1, /*external=*/true};
  const MemoryPlan given = plan_of(R"({"bf16": {"enabled": true}})", world);
  EXPECT_EQ(given.bytes(PlannedState::kOptimizer), 4 * kModel);
  EXPECT_EQ(given.bytes(PlannedState::kGradients), (2 + 4) * kModel);
}

TEST(PlanBuilderTest, SixteenBitMasterAndStatesAreHalfAsLarge) {
  const std::string json = R"({"bf16": {"enabled": true, "bf16_master_weights_and_grads": true,
    "bf16_optimizer_states": true}, "optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 2,
    "offload_optimizer": {"device": "cpu"}}})";
  const MemoryPlan plan = plan_of(json, world_of(4, /*accelerator=*/true));
  EXPECT_EQ(plan.bytes(PlannedState::kMaster), 2 * kModel / 4);
  EXPECT_EQ(plan.bytes(PlannedState::kOptimizer), 4 * kModel / 4);
}

TEST(PlanBuilderTest, GradientsAreKeptInTheAccumulationType) {
  const std::string more = R"(, "data_types": {"grad_accum_dtype": "fp32"})";
  EXPECT_EQ(plan_of(config(2, "", more), world_of(4)).bytes(PlannedState::kGradients), 4 * kModel / 4);
  // Whole gradients of another type than the one that travels are copied once more for that.
  const MemoryPlan plan = plan_of(config(1, "", more), world_of(4));
  EXPECT_EQ(plan.bytes(PlannedState::kGradients), 4 * kModel);
  EXPECT_GE(plan.bytes(PlannedState::kReduce), 2 * kModel);
}

TEST(PlanBuilderTest, BucketsDoNotGrowWithTheModel) {
  // Buckets hold 8 Mi elements at most: three wait for readers, one is reduced, one fills, one more may fill beside it.
  const auto buckets = [](int layers) {
    return plan_of(config(2, "", R"(, "gradient_accumulation_steps": 1)"), world_of(4), model(layers))
        .bytes(PlannedState::kReduce);
  };
  const int64_t bucket = 2 * kLargestUsefulBucketNumel;
  EXPECT_EQ(buckets(128), buckets(256));
  EXPECT_LE(buckets(256), 6 * bucket + 2 * kMatrix);
  EXPECT_GE(buckets(256), 4 * bucket);
}

TEST(PlanBuilderTest, SmallBucketsHoldOneParameterAtLeast) {
  const Config parsed = Config::parse(config(2, R"(, "reduce_bucket_size": 3145728)"), 4, ParseMode::kZeroInit);
  const PlannedUnits units = plan_units(parsed.options(), model(), 4, /*trains=*/true);
  ASSERT_EQ(units.units.size(), 6u);  // three matrices in each but the last
  EXPECT_EQ(units.units[0].params, (std::vector<int>{15, 14, 13}));
  EXPECT_EQ(units.units[5].params, (std::vector<int>{0}));
}

TEST(PlanBuilderTest, SmallParametersOfStage3StayWhole) {
  ModelShapes shapes = model();
  shapes.params.push_back({"norm.weight", {65536}, DType::kFloat32, true, "norm"});
  const MemoryPlan plan = plan_of(config(3), world_of(8), shapes);
  EXPECT_EQ(plan.bytes(PlannedState::kParameters), 2 * kModel / 8 + 2 * 65536);
  EXPECT_EQ(plan.bytes(PlannedState::kGradients), 2 * kModel / 8 + 2 * 65536 / 8);
}

TEST(PlanBuilderTest, FrozenParametersHaveNoGradientsAndStates) {
  ModelShapes shapes = model();
  for (int i = 0; i < kLayers / 2; ++i) shapes.params[i].trainable = false;
  for (const int stage : {0, 2, 3}) {
    const MemoryPlan plan = plan_of(config(stage), world_of(4), shapes);
    EXPECT_EQ(plan.trainable_numel, kModel / 2);
    EXPECT_EQ(plan.bytes(PlannedState::kParameters), stage == 3 ? 2 * kModel / 4 : 2 * kModel) << stage;
    EXPECT_EQ(plan.bytes(PlannedState::kMaster), 4 * kModel / 2 / (stage == 0 ? 1 : 4)) << stage;
  }
  World world = world_of(4);
  world.trains = false;
  const MemoryPlan plan = plan_of(config(3), world);
  EXPECT_EQ(states_per_parameter(plan), 2.0 / 4);
  EXPECT_EQ(plan.bytes(PlannedState::kReduce), 0);
}

TEST(PlanBuilderTest, GatheredParametersFollowTheLimitsOfStage3) {
  const auto gathered = [](const std::string& zero) {
    return plan_of(config(3, zero), world_of(8)).bytes(PlannedState::kGather);
  };
  EXPECT_EQ(gathered(""), 2 * kModel);  // the default limits exceed the model
  EXPECT_EQ(gathered(R"(, "stage3_max_live_parameters": 3145728)"), 2 * (3 + 1) * kMatrix);
  EXPECT_EQ(gathered(R"(, "stage3_max_reuse_distance": 4194304, "stage3_prefetch_bucket_size": 1048576)"),
            2 * (2 + 1 + 2) * kMatrix);
  EXPECT_EQ(gathered(R"(, "stage3_max_live_parameters": 0)"), 2 * kMatrix);
}

TEST(PlanBuilderTest, RanksOfOneHostShareOneCopyAndGatherNothing) {
  World world = world_of(4);
  world.shares_memory = true;
  const MemoryPlan plan = plan_of(config(3), world);
  EXPECT_EQ(plan.bytes(PlannedState::kGather), 0);
  EXPECT_EQ(plan.bytes(PlannedState::kParameters, MemoryPlace::kShared), 2 * kModel / 4);
  world.ranks_per_host = 2;  // over two hosts nothing is shared
  EXPECT_EQ(plan_of(config(3), world).bytes(MemoryPlace::kShared), 0);
}

TEST(PlanBuilderTest, AnAcceleratorHoldsWhatIsNotOffloaded) {
  const World world = world_of(8, /*accelerator=*/true);
  const MemoryPlan all = plan_of(config(2), world);
  EXPECT_EQ(all.host_memory_bytes(), 0);
  const MemoryPlan plan = plan_of(config(2, R"(, "offload_optimizer": {"device": "cpu"})"), world);
  EXPECT_EQ(plan.bytes(PlannedState::kMaster, MemoryPlace::kHostPageable), 4 * kModel / 8);
  EXPECT_EQ(plan.bytes(PlannedState::kOptimizer, MemoryPlace::kHostPageable), 8 * kModel / 8);
  EXPECT_EQ(plan.bytes(PlannedState::kParameters, MemoryPlace::kDevice), 2 * kModel);
  EXPECT_EQ(plan.bytes(PlannedState::kGradients, MemoryPlace::kDevice), 2 * kModel / 8);
  const MemoryPlan half = plan_of(config(3, R"(, "offload_optimizer": {"device": "cpu", "ratio": 0.5})"), world);
  EXPECT_EQ(half.bytes(PlannedState::kOptimizer, MemoryPlace::kHostPageable), 4 * kModel / 8);
  EXPECT_EQ(half.bytes(PlannedState::kOptimizer, MemoryPlace::kDevice), 4 * kModel / 8);
}

TEST(PlanBuilderTest, OffloadedParametersAreGatheredOnTheDevice) {
  const MemoryPlan plan = plan_of(config(3, R"(, "offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 0)"),
                                  world_of(8, /*accelerator=*/true));
  EXPECT_EQ(plan.bytes(PlannedState::kParameters, MemoryPlace::kHostPinned), 2 * kModel / 8);
  EXPECT_EQ(plan.bytes(PlannedState::kGather, MemoryPlace::kDevice), 2 * kMatrix);
}

TEST(PlanBuilderTest, OptimizerStatesInFilesLeaveBuffersInMemory) {
  const std::string zero = R"(, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"})";
  const ModelShapes shapes = model(64, 8192);
  const int64_t numel = 64 * 8 * kMatrix;
  const MemoryPlan plan = plan_of(config(2, zero), world_of(2), shapes);
  EXPECT_EQ(plan.optimizer_path, "/nvme");
  // Master, two states and the gradient, in whole pages.
  EXPECT_EQ(plan.bytes(MemoryPlace::kFile), (4 + 8 + 2) * numel / 2);
  EXPECT_EQ(plan.optimizer_file_bytes, plan.bytes(MemoryPlace::kFile));
  EXPECT_EQ(plan.bytes(PlannedState::kMaster, MemoryPlace::kHostPageable), 0);
  // Four blocks of 4 Mi elements of 12 bytes with their slack and two gradients; buffer_count 4 would allow less.
  EXPECT_GE(plan.bytes(PlannedState::kOptimizerBuffers, MemoryPlace::kHostPinned),
            4 * (12 * kStateBlockNumel + kBufferSlackBytes) + 2 * kBufferSlackBytes);
  const MemoryPlan unpinned =
      plan_of(config(2, R"(, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme", "pin_memory": false})"),
              world_of(2), shapes);
  EXPECT_EQ(unpinned.bytes(MemoryPlace::kHostPinned), 0);
}

TEST(PlanBuilderTest, ParametersInFilesLeaveWhatIsResidentAndBuffers) {
  const std::string zero = R"(, "stage3_max_live_parameters": 0, "offload_param": {"device": "nvme",
    "nvme_path": "/nvme", "max_in_cpu": 4194304})";
  const MemoryPlan plan = plan_of(config(3, zero), world_of(1), model());
  EXPECT_EQ(plan.bytes(PlannedState::kParameters, MemoryPlace::kFile), 2 * (kLayers - 4) * kMatrix);
  EXPECT_EQ(plan.bytes(PlannedState::kParameters, MemoryPlace::kHostPageable), 2 * 4 * kMatrix);
  EXPECT_EQ(plan.param_file_bytes, 2 * (kLayers - 4) * kMatrix);
  // Six units, and no more than three units with slack.
  EXPECT_EQ(plan.bytes(PlannedState::kParamBuffers), 3 * (2 * kMatrix + kBufferSlackBytes));
}

TEST(PlanBuilderTest, SmallMachinesKeepLessOfWhatIsInFiles) {
  const std::string zero = R"(, "stage3_max_live_parameters": 0, "offload_param": {"device": "nvme",
    "nvme_path": "/nvme"})";
  World world = world_of(1);
  EXPECT_EQ(plan_of(config(3, zero), world, model()).bytes(PlannedState::kParameters, MemoryPlace::kFile), 0);
  world.memory_available_bytes = 4 * 2 * 3 * kMatrix;  // a quarter holds three matrices
  EXPECT_EQ(plan_of(config(3, zero), world, model()).bytes(PlannedState::kParameters, MemoryPlace::kHostPageable),
            2 * 3 * kMatrix);
}

TEST(PlanBuilderTest, WithoutAnOptimizerWhatFitsStays) {
  const std::string zero = R"(, "stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0,
    "stage3_max_reuse_distance": 0, "offload_param": {"device": "nvme", "nvme_path": "/nvme"})";
  const ModelShapes shapes = model(64, 8192);
  const int64_t total = 64 * 8 * 2 * kMatrix;
  World world = world_of(1);
  world.trains = false;
  world.memory_total_bytes = world.memory_available_bytes = total;
  const auto residents = [&] { return plan_of(config(3, zero), world, shapes).bytes(PlannedState::kResident); };
  EXPECT_GT(residents(), 0);
  // All that is available but the reserve is used, and never more.
  const MemoryPlan plan = plan_of(config(3, zero), world, shapes);
  EXPECT_EQ(plan.rank_memory_bytes(), total - residency_reserve_bytes(total));
  world.memory_total_bytes = world.memory_available_bytes = 3 * total;  // three quarters are no files at all
  EXPECT_EQ(residents(), plan_of(config(3, zero), world, shapes).bytes(PlannedState::kParameters, MemoryPlace::kFile));
  world.trains = true;
  EXPECT_EQ(residents(), 0);
}

TEST(PlanBuilderTest, ATiedParameterHasTwoGradientsAndTheirSumForAMoment) {
  ModelShapes shapes = model();
  const int64_t once = plan_of(config(0), world_of(1), shapes).bytes(PlannedState::kReduce);
  EXPECT_EQ(once, 2 * kMatrix);
  shapes.params.front().tied = true;
  EXPECT_EQ(plan_of(config(0), world_of(1), shapes).bytes(PlannedState::kReduce), 3 * once);
}

TEST(PlanBuilderTest, ProgramsCountWhenTheyAreAskedFor) {
  World world = world_of(2);
  const int64_t without = plan_of(config(2), world).rank_memory_bytes();
  world.program_bytes = 1000;
  EXPECT_EQ(plan_of(config(2), world).rank_memory_bytes(), without + 1000);
}

TEST(PlanBuilderTest, GroupsThatDoNotDivideTheRanksAreRefused) {
  EXPECT_THROW(plan_of(config(3, R"(, "mics_shard_size": 4)"), world_of(6)), ConfigError);
  World world = world_of(0);
  EXPECT_THROW(make_memory_plan(Config::parse(config(2), 1, ParseMode::kZeroInit), model(), world), ConfigError);
}

}  // namespace
}  // namespace deepscale
