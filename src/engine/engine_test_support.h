// The engine's test model, and training it on ranks as threads.
#pragma once

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "comm/run_ranks.h"
#include "engine/engine.h"

namespace deepscale {

inline constexpr int kSteps = 4;
inline constexpr int kBatch = 6;
inline const std::vector<int64_t> kWidths = {37, 150, 61, 37};

struct Scenario {
  int zero_level = 0;
  int ranks = 2;
  int accumulation = 1;
  int64_t bucket_numel = 500'000'000;
  bool overlap = false;
  at::ScalarType dtype = at::kFloat;
  double clip = 0.5;
  std::string optimizer = "adam";
  LossScaler::Options loss_scale = {};
  int mics = 0;              ///< shard group size, 0: the whole world
  bool poison = false;       ///< NaN in one gradient of step 1
  bool skip_middle = false;  ///< rank 1 does not use the middle layer
  bool average = true;
  bool params_in_file = false;
  int64_t file_block = 0;  ///< optimizer state in files, visiting memory in blocks of so many elements; 0: in memory
};

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;  ///< fp32, model order
  std::vector<double> norms;
  std::vector<bool> applied;
  std::string nonfinite;
};

inline at::Tensor seeded(at::IntArrayRef shape, int64_t seed) {
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
    ShardingPlan plan = plan_for_stage(setup.zero_level, groups);
    plan.releases = setup.params_in_file;
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
    options.reduction.average = setup.average;
    options.gradient_clipping = setup.clip;
    options.optimizer.kind = NativeOptimizerOptions::kind_from(setup.optimizer);
    options.loss_scale = setup.loss_scale;
    if (setup.file_block > 0) {
      options.optimizer_file = FileTierOptions{};
      options.optimizer_file->folder = ::testing::TempDir() + "engine_test_swap";
      options.optimizer_file->pool_bytes = 0;
      options.optimizer_block_numel = setup.file_block;
      options.reduction.smallest_in_file_bytes = 1;
    }
    if (setup.params_in_file) {
      options.param_file = FileTierOptions{};
      options.param_file->folder = ::testing::TempDir() + "engine_test_swap";
    }
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

inline PlanGroups groups_for(const Scenario& setup, const Communicator& world) {
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

inline Outcome train(const Scenario& setup, const Communicator& world) {
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

inline std::vector<Outcome> train_all(const Scenario& setup) {
  std::vector<Outcome> outcomes(setup.ranks);
  run_ranks(setup.ranks, [&](const std::shared_ptr<HostCommunicator>& host) {
    const Communicator world = Communicator::host(host);
    outcomes[world.rank()] = train(setup, world);
  });
  return outcomes;
}

inline void expect_same_bits(const std::vector<Outcome>& expected, const std::vector<Outcome>& actual) {
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

}  // namespace deepscale
