// The contract of numerics and of errors, over ranks as threads with the host communicator: every plan is compared with
// the unsharded one, bit for bit.
#include "engine/engine.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cstring>
#include <mutex>

#include "comm/run_ranks.h"
#include "deepscale/error.h"
#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

constexpr int kSteps = 4;
constexpr int kBatch = 6;
const std::vector<int64_t> kWidths = {37, 150, 61, 37};

struct Scenario {
  int zero_level = 0;
  int ranks = 2;
  int accumulation = 1;
  int64_t bucket_numel = 500'000'000;
  bool overlap = false;
  at::ScalarType dtype = at::kFloat;
  double clip = 0.5;
  std::string optimizer = "adam";
  LossScaler::Options loss_scale;
  int mics = 0;              ///< shard group size, 0: the whole world
  bool poison = false;       ///< NaN in one gradient of step 1
  bool skip_middle = false;  ///< rank 1 does not use the middle layer
};

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;  ///< fp32, model order
  std::vector<double> norms;
  std::vector<bool> applied;
  std::string nonfinite;
};

at::Tensor seeded(at::IntArrayRef shape, int64_t seed) {
  at::Tensor values = at::empty(shape, at::kFloat);
  auto* data = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    data[i] = 0.2f * static_cast<float>(std::sin(0.37 * static_cast<double>(i + 1) * static_cast<double>(seed + 3)));
  }
  return values;
}

/// Layers of weight and bias with tanh between; the last layer's weight is the first's, transposed (tied); one bias
/// frozen.
class Model {
 public:
  Model(const Scenario& setup, const PlanGroups& groups) : setup_(setup) {
    for (size_t l = 0; l + 1 < kWidths.size(); ++l) {
      add(fmt::format("layers.{}.weight", l), {kWidths[l + 1], kWidths[l]}, static_cast<int64_t>(l), true);
      add(fmt::format("layers.{}.bias", l), {kWidths[l + 1]}, static_cast<int64_t>(l) + 40, l != 1);
    }
    const ShardingPlan plan = plan_for_stage(setup.zero_level, groups);
    for (size_t l = 0; plan.shards_params() && l + 1 < kWidths.size(); ++l) {
      units_.push_back(
          std::make_shared<ParamUnit>(fmt::format("layers.{}", l),
                                      std::vector<NamedParam>{{params_[2 * l].name, params_[2 * l].tensor},
                                                              {params_[2 * l + 1].name, params_[2 * l + 1].tensor}},
                                      plan, setup.dtype));
      params_[2 * l].unit = params_[2 * l + 1].unit = units_.back();
    }
    EngineOptions options;
    options.groups = groups;
    options.plan = plan;
    options.bucket_numel = setup.bucket_numel;
    options.reduction.overlap = setup.overlap;
    options.gradient_clipping = setup.clip;
    options.optimizer.kind = NativeOptimizerOptions::kind_from(setup.optimizer);
    options.loss_scale = setup.loss_scale;
    engine = std::make_unique<Engine>(options, params_);
  }

  at::Tensor loss(const at::Tensor& input, bool use_middle) {
    at::Tensor x = input.to(setup_.dtype);
    for (size_t l = 0; l + 1 < kWidths.size(); ++l) {
      if (l == 1 && !use_middle) {
        x = at::constant_pad_nd(x, {0, kWidths[2] - kWidths[1]});
        continue;
      }
      ParamUnit* unit = units_.empty() ? nullptr : units_[l].get();
      if (unit != nullptr) engine->pre_forward(*unit, {x});
      x = at::tanh(at::linear(x, params_[2 * l].tensor, params_[2 * l + 1].tensor));
      if (unit != nullptr) engine->post_forward(*unit, {x});
    }
    return x.to(at::kFloat).sub(input).pow(2).mean();
  }

  std::unique_ptr<Engine> engine;
  std::vector<EngineParam> params_;

 private:
  void add(const std::string& name, std::vector<int64_t> shape, int64_t seed, bool trainable) {
    at::Tensor tensor = seeded(shape, seed).to(setup_.dtype);
    tensor.set_requires_grad(trainable);
    params_.push_back({name, tensor, trainable ? static_cast<int>(shape.size() == 1) : -1, nullptr});
  }

  Scenario setup_;
  std::vector<std::shared_ptr<ParamUnit>> units_;
};

PlanGroups groups_for(const Scenario& setup, const Communicator& world) {
  PlanGroups groups = PlanGroups::over(world);
  if (setup.mics == 0) return groups;
  std::vector<int> shard, replica;
  for (int r = 0; r < world.size(); ++r) {
    if (r / setup.mics == world.rank() / setup.mics) shard.push_back(r);
    if (r % setup.mics == world.rank() % setup.mics) replica.push_back(r);
  }
  groups.shard = world.subgroup(shard);
  groups.replica = world.subgroup(replica);
  return groups;
}

Outcome train(const Scenario& setup, const Communicator& world) {
  Model model(setup, groups_for(setup, world));
  Outcome outcome;
  const std::vector<GroupHyper> hyper = {{{"lr", 1e-3}, {"weight_decay", 0.1}, {"momentum", 0.9}}, {{"lr", 3e-3}}};
  for (int step = 0; step < kSteps; ++step) {
    for (int micro = 0; micro < setup.accumulation; ++micro) {
      const int64_t sample = micro * 64 + world.rank();
      at::Tensor input = seeded({kBatch, kWidths[0]}, sample + 100);
      if (setup.poison && step == 1 && world.rank() == world.size() - 1) {
        input.mutable_data_ptr<float>()[0] = std::numeric_limits<float>::quiet_NaN();
      }
      const at::Tensor loss = model.loss(input, !(setup.skip_middle && world.rank() == 1));
      model.engine->set_boundary(micro + 1 == setup.accumulation);
      loss.backward(model.engine->backward_seed(loss, setup.accumulation));
      model.engine->finish_backward();
      outcome.losses.push_back(loss.item<double>());
    }
    outcome.applied.push_back(model.engine->step(hyper));
    outcome.norms.push_back(model.engine->grad_norm());
    if (model.engine->overflow()) outcome.nonfinite = model.engine->nonfinite_parameter();
  }
  for (size_t p = 0; p < model.params_.size(); ++p) {
    outcome.weights.push_back(*model.engine->read_full(static_cast<int>(p), "fp32"));
  }
  return outcome;
}

std::vector<Outcome> train_all(const Scenario& setup) {
  std::vector<Outcome> outcomes(setup.ranks);
  run_ranks(setup.ranks, [&](const std::shared_ptr<HostCommunicator>& host) {
    const Communicator world = Communicator::host(host);
    outcomes[world.rank()] = train(setup, world);
  });
  return outcomes;
}

void expect_same_bits(const std::vector<Outcome>& expected, const std::vector<Outcome>& actual) {
  for (size_t r = 0; r < expected.size(); ++r) {
    EXPECT_EQ(expected[r].losses, actual[r].losses) << "rank " << r;
    EXPECT_EQ(expected[r].norms, actual[r].norms) << "rank " << r;
    for (size_t p = 0; p < expected[r].weights.size(); ++p) {
      EXPECT_EQ(std::memcmp(expected[r].weights[p].const_data_ptr(), actual[r].weights[p].const_data_ptr(),
                            expected[r].weights[p].nbytes()),
                0)
          << "rank " << r << " parameter " << p;
    }
  }
}

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
