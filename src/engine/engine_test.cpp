// The contract of numerics and of errors, over ranks as threads with the host communicator: every plan is compared with
// the unsharded one, bit for bit.
#include "engine/engine.h"

#include "deepscale/error.h"
#include "engine/engine_test_support.h"

namespace deepscale {
namespace {

class PlanTest : public ::testing::TestWithParam<int> {};

TEST_P(PlanTest, EveryLevelGivesTheBitsOfLevelZero) {
  Scenario setup;
  setup.ranks = GetParam();
  const auto reference = train_all(setup);
  EXPECT_LT(reference[0].losses.back(), reference[0].losses.front());
  for (const int level : {1, 2, 3}) {
    SCOPED_TRACE(level);
    setup.zero_level = level;
    expect_same_bits(reference, train_all(setup));
  }
}

TEST_P(PlanTest, BucketSizeAndOverlapDoNotChangeBits) {
  Scenario setup;
  setup.ranks = GetParam();
  for (const int level : {0, 1, 2, 3}) {
    setup.zero_level = level;
    setup.bucket_numel = 500'000'000;
    setup.overlap = false;
    const auto reference = train_all(setup);
    for (const int64_t bucket : {int64_t{1}, int64_t{4000}, int64_t{9000}}) {
      SCOPED_TRACE(fmt::format("level {} bucket {}", level, bucket));
      setup.bucket_numel = bucket;
      setup.overlap = !setup.overlap;
      expect_same_bits(reference, train_all(setup));
    }
  }
}

TEST_P(PlanTest, OptimizerStateInFilesDoesNotChangeBits) {
  for (const std::string optimizer : {"adam", "lion", "adagrad", "sgd"}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      Scenario setup;
      setup.ranks = GetParam();
      setup.optimizer = optimizer;
      setup.dtype = dtype;
      for (const int level : {0, 1, 3}) {
        setup.zero_level = level;
        setup.file_block = 0;
        const auto reference = train_all(setup);
        for (const int64_t block : {int64_t{1000}, int64_t{1} << 20}) {
          SCOPED_TRACE(fmt::format("{} level {} block {}", optimizer, level, block));
          setup.file_block = block;
          expect_same_bits(reference, train_all(setup));
        }
      }
    }
  }
}

TEST_P(PlanTest, ParametersInFilesDoNotChangeBits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int accumulation : {1, 3}) {
      SCOPED_TRACE(fmt::format("{} accumulation {}", c10::toString(dtype), accumulation));
      Scenario setup;
      setup.ranks = GetParam();
      setup.zero_level = 3;
      setup.dtype = dtype;
      setup.accumulation = accumulation;
      const auto reference = train_all(setup);
      setup.params_in_file = true;
      expect_same_bits(reference, train_all(setup));
      setup.file_block = 3000;
      expect_same_bits(reference, train_all(setup));
    }
  }
}

TEST_P(PlanTest, WithAccumulationLevelsAgreeInPairs) {
  Scenario setup;
  setup.ranks = GetParam();
  setup.accumulation = 3;
  std::vector<std::vector<Outcome>> outcomes;
  for (const int level : {0, 1, 2, 3}) {
    setup.zero_level = level;
    outcomes.push_back(train_all(setup));
  }
  expect_same_bits(outcomes[0], outcomes[1]);
  expect_same_bits(outcomes[2], outcomes[3]);
  for (size_t p = 0; p < outcomes[0][0].weights.size(); ++p) {
    EXPECT_TRUE(at::allclose(outcomes[0][0].weights[p], outcomes[2][0].weights[p], 1e-4, 1e-6));
  }
}

TEST_P(PlanTest, EveryOptimizerAgreesWithLevelZero) {
  for (const std::string optimizer : {"lion", "adagrad", "sgd"}) {
    Scenario setup;
    setup.ranks = GetParam();
    setup.optimizer = optimizer;
    const auto reference = train_all(setup);
    for (const int level : {2, 3}) {
      SCOPED_TRACE(fmt::format("{} level {}", optimizer, level));
      setup.zero_level = level;
      expect_same_bits(reference, train_all(setup));
    }
  }
}

TEST_P(PlanTest, LambAndMuonAgreeWithLevelZeroWithinRounding) {
  for (const std::string optimizer : {"lamb", "muon"}) {
    Scenario setup;
    setup.ranks = GetParam();
    setup.optimizer = optimizer;
    const auto reference = train_all(setup);
    for (const int level : {1, 2, 3}) {
      setup.zero_level = level;
      const auto outcome = train_all(setup);
      for (size_t p = 0; p < reference[0].weights.size(); ++p) {
        EXPECT_TRUE(at::allclose(reference[0].weights[p], outcome[0].weights[p], 1e-4, 1e-5)) << optimizer << level;
      }
    }
  }
}

TEST_P(PlanTest, LowPrecisionTrainsOnMasterCopiesAndAgreesAcrossLevels) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    Scenario setup;
    setup.ranks = GetParam();
    setup.dtype = dtype;
    const auto reference = train_all(setup);
    EXPECT_LT(reference[0].losses.back(), reference[0].losses.front());
    for (const int level : {1, 2, 3}) {
      setup.zero_level = level;
      expect_same_bits(reference, train_all(setup));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, PlanTest, ::testing::Values(1, 2, 4));

TEST(EnginePlan, MicsSubgroupsAgreeWithLevelZeroWithinRounding) {
  Scenario setup;
  setup.ranks = 4;
  const auto reference = train_all(setup);
  setup.zero_level = 3;
  setup.mics = 2;
  const auto outcome = train_all(setup);
  for (size_t p = 0; p < reference[0].weights.size(); ++p) {
    EXPECT_TRUE(at::allclose(reference[0].weights[p], outcome[3].weights[p], 1e-4, 1e-6));
  }
}

TEST(EnginePlan, ALayerThatOneRankSkipsCountsAsZeroAndNothingHangs) {
  Scenario setup;
  setup.skip_middle = true;
  const auto reference = train_all(setup);
  for (const int level : {1, 2, 3}) {
    setup.zero_level = level;
    expect_same_bits(reference, train_all(setup));
  }
}

TEST(EngineErrors, ANanGradientSkipsTheStepKeepsWeightsAndNamesTheParameter) {
  Scenario setup;
  setup.poison = true;
  for (const int level : {0, 1, 2, 3}) {
    setup.zero_level = level;
    const auto outcome = train_all(setup);
    EXPECT_EQ(outcome[0].applied, (std::vector<bool>{true, false, true, true}));
    EXPECT_EQ(outcome[0].nonfinite, "layers.0.weight");
    for (const auto& weight : outcome[0].weights) EXPECT_TRUE(at::isfinite(weight).all().item<bool>());
  }
}

TEST(EngineErrors, DynamicLossScaleHalvesAfterOverflows) {
  Scenario setup;
  setup.dtype = at::kHalf;
  setup.loss_scale.dynamic = true;
  setup.loss_scale.hysteresis = 1;
  setup.loss_scale.initial_scale = 16777216.0 * 16;
  const auto outcome = train_all(setup);
  EXPECT_FALSE(outcome[0].applied[0]);
}

TEST(EngineErrors, AParameterResizedBehindOurBackIsNamed) {
  run_ranks(2, [&](const std::shared_ptr<HostCommunicator>& host) {
    Scenario setup;
    Model model(setup, PlanGroups::over(Communicator::host(host)));
    model.params_[0].tensor.set_data(at::zeros({3, 3}));
    try {
      model.engine->step({{}, {}});
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("layers.0.weight"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("[3, 3]"), std::string::npos) << error.what();
    }
  });
}

TEST(EngineErrors, ARankThatDiesInMidStepEndsTheOthersWithAnErrorThatNamesIt) {
  try {
    run_ranks(2, [&](const std::shared_ptr<HostCommunicator>& host) {
      Scenario setup;
      setup.zero_level = 2;
      const Communicator world = Communicator::host(host);
      Model model(setup, PlanGroups::over(world));
      if (world.rank() == 1) throw std::runtime_error("rank 1 stops");
      try {
        const at::Tensor loss = model.loss(seeded({kBatch, kWidths[0]}, 5), true);
        loss.backward(model.engine->backward_seed(loss, 1));
        model.engine->finish_backward();
        model.engine->step({{}, {}});
        ADD_FAILURE() << "no error";
      } catch (const CommError& error) {
        EXPECT_NE(std::string(error.what()).find("rank 1"), std::string::npos) << error.what();
      }
    });
    ADD_FAILURE() << "rank 1's error was lost";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 1 stops");
  }
}

TEST(EngineErrors, TheSameTensorTwiceIsRefused) {
  at::Tensor tensor = at::zeros({4}).set_requires_grad(true);
  EngineOptions options;
  options.groups = PlanGroups::over(Communicator::self());
  options.plan = plan_for_stage(0, options.groups);
  EXPECT_THROW(Engine(options, {{"a", tensor, 0, nullptr}, {"b", tensor, 0, nullptr}}), ConfigError);
}

TEST(EngineState, FullGradientsAndStatesMatchTheUnshardedOnes) {
  std::vector<std::vector<at::Tensor>> grads(4);
  for (const int level : {0, 1, 2, 3}) {
    run_ranks(2, [&](const std::shared_ptr<HostCommunicator>& host) {
      Scenario setup;
      setup.zero_level = level;
      const Communicator world = Communicator::host(host);
      Model model(setup, PlanGroups::over(world));
      const at::Tensor loss = model.loss(seeded({kBatch, kWidths[0]}, 5 + world.rank()), true);
      loss.backward(model.engine->backward_seed(loss, 1));
      model.engine->finish_backward();
      for (int p = 0; p < 6; ++p) {
        const auto grad = model.engine->read_full(p, "grad");
        EXPECT_EQ(grad.has_value(), p != 3);
        if (world.rank() == 0 && grad) grads[level].push_back(*grad);
      }
      model.engine->write_full(0, "exp_avg", at::full({kWidths[1], kWidths[0]}, 0.25));
      EXPECT_TRUE(at::allclose(*model.engine->read_full(0, "exp_avg"), at::full({kWidths[1], kWidths[0]}, 0.25)));
      model.engine->write_full(0, "fp32", at::full({kWidths[1], kWidths[0]}, 0.5));
      EXPECT_EQ(model.engine->read_full(0, "fp32")->mean().item<double>(), 0.5);
    });
  }
  for (const int level : {1, 2, 3}) {
    for (size_t p = 0; p < grads[0].size(); ++p) EXPECT_TRUE(at::equal(grads[0][p], grads[level][p]));
  }
}

}  // namespace
}  // namespace deepscale
