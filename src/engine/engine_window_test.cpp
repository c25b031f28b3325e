// What may happen between two steps: gradients that come late, are read early, are cut off by an exception, or keep
// their graph. Every case is compared with the same training without the incident, or with level 0.
#include <ATen/Functions.h>

#include <functional>

#include "deepscale/error.h"
#include "engine/engine_test_support.h"

namespace deepscale {
namespace {

const std::vector<GroupHyper> kHyper = {{{"lr", 1e-2}}, {{"lr", 1e-2}}};
const std::vector<int> kAllLevels = {0, 1, 2, 3};

void backward(Model& model, const at::Tensor& loss, double divide_by = 1) {
  loss.backward(model.engine->backward_seed(loss, divide_by));
  model.engine->finish_backward();
}

at::Tensor sample(int64_t seed) {
  return seeded({kBatch, kWidths[0]}, seed);
}

/// Weights after `work` on two ranks, and what both ranks agree on.
std::vector<at::Tensor> weights_after(Scenario setup, const std::function<void(Model&, const Communicator&)>& work) {
  std::vector<std::vector<at::Tensor>> weights(static_cast<size_t>(setup.ranks));
  run_ranks(setup.ranks, [&](const std::shared_ptr<HostCommunicator>& host) {
    const Communicator world = Communicator::host(host);
    Model model(setup, PlanGroups::over(world));
    work(model, world);
    for (size_t p = 0; p < model.params_.size(); ++p) {
      weights[static_cast<size_t>(world.rank())].push_back(*model.engine->read_full(static_cast<int>(p), "fp32"));
    }
  });
  for (size_t p = 0; p < weights[0].size(); ++p) EXPECT_TRUE(at::equal(weights[0][p], weights.back()[p]));
  return weights[0];
}

void expect_close(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& actual) {
  for (size_t p = 0; p < expected.size(); ++p) EXPECT_TRUE(at::allclose(expected[p], actual[p], 1e-4, 1e-6)) << p;
}

TEST(EngineWindow, GradientsThatComeAfterTheirUnitWasSentAreCounted) {
  const auto work = [](bool only_rank_1) {
    return [only_rank_1](Model& model, const Communicator& world) {
      for (int step = 0; step < 3; ++step) {
        const at::Tensor first = model.loss(sample(10 * step + world.rank()), true);
        const at::Tensor second = model.loss(sample(10 * step + world.rank() + 5), true);
        first.backward(model.engine->backward_seed(first, 1));
        // As a reentrant checkpoint does it: a second pass over the same parameters before the first one is finished.
        if (!only_rank_1 || world.rank() == 1) second.backward();
        model.engine->finish_backward();
        EXPECT_TRUE(model.engine->step(kHyper));
      }
    };
  };
  for (const bool only_rank_1 : {false, true}) {
    const auto expected = weights_after({.optimizer = "sgd"}, work(only_rank_1));
    for (const int level : {1, 2, 3}) {
      SCOPED_TRACE(level);
      expect_close(expected, weights_after({.zero_level = level, .optimizer = "sgd"}, work(only_rank_1)));
    }
  }
}

TEST(EngineWindow, AUnitThatIsCompleteTwiceBeforeItsTurnIsSentOnce) {
  const auto work = [](Model& model, const Communicator& world) {
    for (int step = 0; step < 3; ++step) {
      const at::Tensor weight = model.params_[0].tensor;  // of the unit that is sent last
      const at::Tensor loss = model.loss(sample(step + world.rank()), true);
      at::Tensor seed = model.engine->backward_seed(loss, 1);
      if (weight.numel() > 0 && model.params_[0].unit == nullptr) {
        for (int twice = 0; twice < 2; ++twice) {
          at::add(weight.pow(2).sum(), model.params_[1].tensor.pow(2).sum()).backward();
        }
      }
      loss.backward(seed);
      model.engine->finish_backward();
      EXPECT_TRUE(model.engine->step(kHyper));
    }
  };
  const auto expected = weights_after({.bucket_numel = 1, .optimizer = "sgd"}, work);
  expect_close(expected, weights_after({.zero_level = 2, .bucket_numel = 1, .optimizer = "sgd"}, work));
}

TEST(EngineWindow, ReadingAGradientInTheMiddleOfAWindowChangesNothing) {
  const auto work = [](bool reads) {
    return [reads](Model& model, const Communicator& world) {
      for (int micro = 0; micro < 3; ++micro) {
        backward(model, model.loss(sample(micro + 7 * world.rank()), true), 3);
        if (!reads || micro == 2) continue;
        EXPECT_TRUE(model.engine->read_full(0, "grad").has_value());
      }
      if (reads) (void)model.engine->read_full(0, "grad");
      EXPECT_TRUE(model.engine->step(kHyper));
    };
  };
  for (const int level : kAllLevels) {
    for (const bool average : {true, false}) {
      SCOPED_TRACE(fmt::format("level {} average {}", level, average));
      const Scenario setup{.zero_level = level, .clip = 0, .optimizer = "sgd", .average = average};
      expect_close(weights_after(setup, work(false)), weights_after(setup, work(true)));
    }
  }
}

TEST(EngineWindow, AGradientWrittenInTheMiddleOfAWindowIsAddedTo) {
  for (const int level : kAllLevels) {
    SCOPED_TRACE(level);
    weights_after({.zero_level = level, .clip = 0, .optimizer = "sgd"}, [](Model& model, const Communicator& world) {
      backward(model, model.loss(sample(world.rank()), true));
      const at::Tensor first = *model.engine->read_full(0, "grad");
      model.engine->write_full(0, "grad", at::zeros_like(first));
      backward(model, model.loss(sample(world.rank()), true));
      EXPECT_TRUE(at::allclose(*model.engine->read_full(0, "grad"), first, 1e-4, 1e-7));
    });
  }
}

void cut_off(Model& model) {
  const at::Tensor& middle = model.params_[2].tensor;
  const auto hook = middle.register_hook([](const at::Tensor&) { throw std::runtime_error("cut off"); });
  const at::Tensor loss = model.loss(sample(40), true);
  EXPECT_THROW(loss.backward(model.engine->backward_seed(loss, 1)), std::runtime_error);
  middle.remove_hook(hook);
}

TEST(EngineWindow, ABackwardThatAnExceptionCutsOffLeavesNothingBehindOnceItIsCleared) {
  const auto work = [](bool incident) {
    return [=](Model& model, const Communicator& world) {
      if (incident) {
        cut_off(model);
        model.engine->zero_grad();
      }
      backward(model, model.loss(sample(world.rank()), true));
      EXPECT_TRUE(model.engine->step(kHyper));
    };
  };
  for (const int level : kAllLevels) {
    SCOPED_TRACE(level);
    const auto expected = weights_after({.zero_level = level}, work(false));
    const auto actual = weights_after({.zero_level = level}, work(true));
    for (size_t p = 0; p < expected.size(); ++p) EXPECT_TRUE(at::equal(expected[p], actual[p])) << p;
  }
}

TEST(EngineWindow, GradientsReadAfterABackwardWasCutOffAreThoseThatItReached) {
  const auto gradients = [](const Scenario& setup) {
    std::vector<at::Tensor> found;
    weights_after(setup, [&](Model& model, const Communicator& world) {
      cut_off(model);
      for (const int p : {4, 5}) {  // of the layer behind the one that failed
        const auto grad = model.engine->read_full(p, "grad");
        if (world.rank() == 0) found.push_back(grad ? *grad : at::Tensor());
      }
      backward(model, model.loss(sample(world.rank()), true));  // which may follow
    });
    return found;
  };
  const auto expected = gradients({.clip = 0, .optimizer = "sgd"});
  ASSERT_GT(expected[0].abs().max().item<float>(), 0.0f);
  for (const int level : {1, 2, 3}) {
    for (const bool in_file : {false, true}) {
      SCOPED_TRACE(fmt::format("level {} in_file {}", level, in_file));
      Scenario setup{.zero_level = level, .clip = 0, .optimizer = "sgd"};
      setup.file_block = in_file ? 64 : 0;
      const auto actual = gradients(setup);
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(expected[i].defined(), actual[i].defined());
        if (!expected[i].defined()) continue;
        EXPECT_TRUE(at::allclose(expected[i], actual[i], 1e-4, 1e-6)) << i;
      }
    }
  }
}

TEST(EngineWindow, WhatABackwardReachedBeforeItWasCutOffCountsAlikeAtEveryLevel) {
  const auto work = [](Model& model, const Communicator& world) {
    cut_off(model);
    backward(model, model.loss(sample(world.rank()), true));
    EXPECT_TRUE(model.engine->step(kHyper));
  };
  const auto expected = weights_after({.clip = 0, .optimizer = "sgd"}, work);
  for (const int level : {1, 2, 3}) {
    SCOPED_TRACE(level);
    expect_close(expected, weights_after({.zero_level = level, .clip = 0, .optimizer = "sgd"}, work));
  }
}

TEST(EngineWindow, GradientsFromOutsideMayComeBeforeThePassIsAnnounced) {
  const auto work = [](Model& model, const Communicator& world) {
    const at::Tensor loss = model.loss(sample(world.rank()), true);
    if (model.params_[0].unit == nullptr) model.params_[0].tensor.pow(2).sum().backward();
    model.engine->begin_backward();
    loss.backward();
    model.engine->finish_backward();
    EXPECT_TRUE(model.engine->step(kHyper));
  };
  const auto expected = weights_after({.bucket_numel = 1, .clip = 0, .optimizer = "sgd"}, work);
  for (const int level : {1, 2}) {
    SCOPED_TRACE(level);
    expect_close(expected,
                 weights_after({.zero_level = level, .bucket_numel = 1, .clip = 0, .optimizer = "sgd"}, work));
  }
}

TEST(EngineWindow, AWrittenGradientIsWrittenOnEveryRankBeforeAnythingWasRead) {
  for (const int level : kAllLevels) {
    SCOPED_TRACE(level);
    weights_after({.zero_level = level, .clip = 0, .optimizer = "sgd"}, [](Model& model, const Communicator& world) {
      backward(model, model.loss(sample(world.rank()), true));
      // A bias, which only one rank holds a piece of.
      model.engine->write_full(1, "grad", at::full({kWidths[1]}, 0.5));
      EXPECT_TRUE(at::allclose(*model.engine->read_full(1, "grad"), at::full({kWidths[1]}, 0.5)));
      EXPECT_TRUE(model.engine->read_full(0, "grad").has_value());
    });
  }
}

TEST(EngineWindow, AGraphOfGradientsDoesNotCountMicroBatchesTwice) {
  const auto work = [](bool create_graph) {
    return [create_graph](Model& model, const Communicator& world) {
      for (int micro = 0; micro < 2; ++micro) {
        const at::Tensor loss = model.loss(sample(micro + 7 * world.rank()), true);
        loss.backward(model.engine->backward_seed(loss, 2), true, create_graph);
        model.engine->finish_backward();
      }
      EXPECT_TRUE(model.engine->step(kHyper));
    };
  };
  for (const int level : {0, 1}) {
    SCOPED_TRACE(level);
    const Scenario setup{.zero_level = level, .clip = 0, .optimizer = "sgd"};
    expect_close(weights_after(setup, work(false)), weights_after(setup, work(true)));
  }
}

TEST(EngineWindow, TooFewHyperParametersAreRefused) {
  weights_after({}, [](Model& model, const Communicator&) {
    EXPECT_THROW(model.engine->step({{{"lr", 1e-3}}}), Error);
  });
}

TEST(EngineBuild, DoublePrecisionIsRefusedByName) {
  EngineOptions options;
  options.groups = PlanGroups::over(Communicator::self());
  options.plan = plan_for_stage(0, options.groups);
  const at::Tensor tensor = at::zeros({4}, at::kDouble).set_requires_grad(true);
  try {
    const Engine engine(options, {{"wide.weight", tensor, 0, nullptr}});
    ADD_FAILURE() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("wide.weight has dtype float64"), std::string::npos) << error.what();
  }
}

TEST(EngineBuild, ASettingThatDiffersBetweenRanksIsNamedOnAllOfThem) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& host) {
    EngineOptions options;
    options.groups = PlanGroups::over(Communicator::host(host));
    options.plan = plan_for_stage(0, options.groups);
    options.shared_settings = {{"bf16", 5}, {"gradient_clipping", static_cast<uint64_t>(host->rank()) << 40}};
    const at::Tensor tensor = at::zeros({4}).set_requires_grad(true);
    try {
      const Engine engine(options, {{"weight", tensor, 0, nullptr}});
      ADD_FAILURE() << "no error";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("\"gradient_clipping\" in the configuration of rank 1"),
                std::string::npos)
          << error.what();
    }
  });
}

TEST(EngineState, LoadedMomentumIsNotTakenForAFirstStep) {
  Scenario setup{.ranks = 1, .clip = 0, .optimizer = "sgd"};
  weights_after(setup, [](Model& model, const Communicator&) {
    const auto shape = model.params_[0].tensor.sizes().vec();
    model.engine->write_full(0, "momentum_buffer", at::full(shape, 0.5));
    const at::Tensor before = *model.engine->read_full(0, "fp32");
    backward(model, model.loss(sample(0), true));
    const at::Tensor grad = *model.engine->read_full(0, "grad");
    const GroupHyper hyper = {{"lr", 0.1}, {"momentum", 0.9}, {"dampening", 0.5}};
    model.engine->step({hyper, hyper});
    const at::Tensor buffer = at::full(shape, 0.45).add(grad, 0.5);
    EXPECT_TRUE(at::allclose(*model.engine->read_full(0, "fp32"), before.sub(buffer, 0.1), 1e-5, 1e-7));
    model.engine->reset_optimizer();
    EXPECT_EQ(model.engine->read_full(0, "momentum_buffer")->abs().max().item<double>(), 0.0);
  });
}

TEST(EngineState, SgdWithoutMomentumKeepsNoBufferAndAnUnknownStateIsRefusedOnAllRanks) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& host) {
    EngineOptions options;
    options.groups = PlanGroups::over(Communicator::host(host));
    options.plan = plan_for_stage(2, options.groups);
    options.optimizer.kind = OptimizerKind::kSgd;
    options.optimizer.momentum = false;
    const at::Tensor tensor = at::zeros({40}).set_requires_grad(true);
    Engine engine(options, {{"weight", tensor, 0, nullptr}});
    EXPECT_EQ(engine.memory_bytes().optimizer, 0);
    EXPECT_THROW((void)engine.read_full(0, "momentum_buffer"), Error);
    const at::Tensor loss = tensor.sum();
    loss.backward(engine.backward_seed(loss, 1));
    engine.finish_backward();
    EXPECT_THROW(engine.step({{{"lr", 0.1}, {"momentum", 0.9}}}), ConfigError);
  });
}

}  // namespace
}  // namespace deepscale
