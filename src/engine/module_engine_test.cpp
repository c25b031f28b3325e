// The public C++ API over ranks as threads: every stage trains a module of units to the same bits, and mistakes end in
// errors that name what is wrong.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "comm/run_ranks.h"
#include "engine/module_test_support.h"

namespace deepscale {
namespace {

struct Job {
  std::string level = "0";
  std::string more{};  ///< further keys of the configuration, ending in a comma
  int accumulation = 1;
  int steps = 5;  ///< odd: the first and the last see the same data
  std::vector<ParameterGroup> groups{};
};

std::string config_text(const Job& run) {
  return R"({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": )" + std::to_string(run.accumulation) +
         R"(, "optimizer": {"type": "AdamW", "params": {"lr": 0.002, "weight_decay": 0.1}}, "gradient_clipping": 0.5, )" +
         run.more + R"("zero_optimization": {"stage": )" + run.level +
         R"(, "stage3_param_persistence_threshold": 100}})";
}

struct Outcome {
  std::vector<double> losses;
  std::map<std::string, at::Tensor> weights;
  std::string description;
};

Outcome train(const Job& run, const Communicator& world) {
  auto model = std::make_shared<NetImpl>();
  if (world.rank() != 0) {
    const at::NoGradGuard no_grad;
    for (auto& param : model->parameters()) param.zero_();  // rank 0's values count
    model->offset.fill_(7);
  }
  const auto engine =
      initialize(model, config_text(run), {.communicator = world, .units = model->units(), .groups = run.groups});
  Outcome outcome;
  for (int micro = 0; micro < run.steps * run.accumulation; ++micro) {
    const at::Tensor input = pattern({4, kWidth}, 100 + micro % 2 * world.size() + world.rank());
    const at::Tensor output = engine->forward<NetImpl>(input.to(model->layers[0]->linear->weight.scalar_type()));
    const at::Tensor loss = output.to(at::kFloat).sub(input).pow(2).mean();
    outcome.losses.push_back(engine->backward(loss).item<double>());
    engine->step();
  }
  EXPECT_EQ(engine->global_steps(), run.steps);
  EXPECT_EQ(model->offset.sum().item<double>(), 0.0);
  for (const auto& param : model->named_parameters())
    outcome.weights[param.key()] = engine->full_parameter(param.key());
  outcome.description = engine->description();
  return outcome;
}

std::vector<Outcome> train_all(const Job& run, int ranks) {
  std::vector<Outcome> outcomes(ranks);
  run_ranks(ranks, [&](const std::shared_ptr<HostCommunicator>& host) {
    const Communicator world = Communicator::host(host);
    outcomes[world.rank()] = train(run, world);
  });
  return outcomes;
}

void expect_same_bits(const std::vector<Outcome>& expected, const std::vector<Outcome>& actual) {
  for (size_t r = 0; r < expected.size(); ++r) {
    EXPECT_EQ(expected[r].losses, actual[r].losses) << "rank " << r;
    for (const auto& [name, weight] : expected[r].weights) {
      EXPECT_TRUE(at::equal(weight, actual[r].weights.at(name))) << name;
    }
  }
}

TEST(ModuleEngine, EveryStageTrainsToTheSameBits) {
  for (const int ranks : {1, 2, 4}) {
    Job run;
    const auto reference = train_all(run, ranks);
    EXPECT_LT(reference[0].losses.back(), reference[0].losses.front());
    for (const std::string level : {"1", "2", "3"}) {
      SCOPED_TRACE(level);
      run.level = level;
      expect_same_bits(reference, train_all(run, ranks));
    }
  }
}

TEST(ModuleEngine, SixteenBitParametersTrainUnderEveryStage) {
  for (const std::string precision :
       {R"("bf16": {"enabled": true},)", R"("fp16": {"enabled": true, "loss_scale": 128},)"}) {
    Job run;
    run.more = precision;
    const auto reference = train_all(run, 2);
    EXPECT_LT(reference[0].losses.back(), reference[0].losses.front());
    run.level = "3";
    expect_same_bits(reference, train_all(run, 2));
  }
}

TEST(ModuleEngine, AccumulationAndSchedulesWork) {
  Job run;
  run.accumulation = 3;
  run.more = R"("scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3, "warmup_type": "linear"}},)";
  const auto reference = train_all(run, 2);
  run.level = "1";
  expect_same_bits(reference, train_all(run, 2));
  run.level = "3";
  const auto sharded = train_all(run, 2);
  for (const auto& [name, weight] : reference[0].weights) {
    EXPECT_TRUE(at::allclose(weight, sharded[0].weights.at(name), 1e-4, 1e-6)) << name;
  }
}

TEST(ModuleEngine, ATrainedModelDescribesWhatIsSharded) {
  Job run;
  run.level = "3";
  run.steps = 1;
  const std::string text = train_all(run, 2)[1].description;
  EXPECT_NE(text.find("optimizer AdamW with 1 group(s)"), std::string::npos) << text;
}

TEST(ModuleEngine, GroupsKeepTheirOwnSettings) {
  run_ranks(2, [&](const std::shared_ptr<HostCommunicator>& host) {
    auto model = std::make_shared<NetImpl>();
    InitializeOptions options{.communicator = Communicator::host(host), .units = model->units()};
    options.groups.push_back(ParameterGroup::named({"scale"}, {{"lr", 0.0}, {"weight_decay", 0.0}}));
    const auto engine = initialize(model, config_text({.level = "3"}), options);
    EXPECT_EQ(engine->learning_rates(), (std::vector<double>{0.0, 0.002}));
    const at::Tensor before = engine->full_parameter("scale");
    const at::Tensor other = engine->full_parameter("layers.0.linear.weight");
    engine->backward(engine->forward<NetImpl>(pattern({4, kWidth}, 1)).pow(2).mean());
    EXPECT_GT(engine->full_gradient("scale").abs().sum().item<double>(), 0.0);
    engine->step();
    EXPECT_TRUE(engine->was_step_applied());
    EXPECT_GT(engine->grad_norm(), 0.0);
    EXPECT_TRUE(at::equal(before, engine->full_parameter("scale")));
    EXPECT_FALSE(at::equal(other, engine->full_parameter("layers.0.linear.weight")));
    engine->set_full_parameter("layers.0.linear.weight", other);
    EXPECT_TRUE(at::equal(other, engine->full_parameter("layers.0.linear.weight")));
  });
}

TEST(ModuleEngine, AfterAForwardThatThrowsTheNextOneWorksAndTheModelOutlivesTheEngine) {
  run_ranks(2, [&](const std::shared_ptr<HostCommunicator>& host) {
    auto model = std::make_shared<NetImpl>();
    const at::Tensor input = pattern({4, kWidth}, 1);
    at::Tensor expected;
    {
      const auto engine = initialize(model, config_text({.level = "3"}),
                                     {.communicator = Communicator::host(host), .units = model->units()});
      model->head->fails = true;
      EXPECT_THROW(engine->forward<NetImpl>(input), std::runtime_error);
      EXPECT_EQ(model->layers[0]->linear->weight.numel(), 0);  // released
      model->head->fails = false;
      const at::NoGradGuard no_grad;
      expected = engine->forward<NetImpl>(input).clone();
    }
    EXPECT_FALSE(model->entry.attached());
  });
}

void expect_error(const std::function<void(std::shared_ptr<NetImpl>)>& body, const std::string& part) {
  try {
    body(std::make_shared<NetImpl>());
    ADD_FAILURE() << "no error; expected " << part;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(ModuleEngineErrors, AModelIsAsItWasAfterAMistakeInTheSchedule) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& host) {
    const auto model = std::make_shared<NetImpl>();
    const InitializeOptions options{.communicator = Communicator::host(host), .units = model->units()};
    const std::string good = R"({"train_batch_size": 4, "zero_optimization": {"stage": 3}, "bf16": {"enabled": true},
                                 "optimizer": {"type": "SGD"})";
    EXPECT_THROW(initialize(model, good + R"(, "scheduler": {"type": "Foo"}})", options), ConfigError);
    const at::Tensor input = pattern({2, kWidth}, 3);
    EXPECT_TRUE(model->forward(input).defined());
    EXPECT_EQ(model->scale.scalar_type(), at::kFloat);
    EXPECT_NE(initialize(model, good + "}", options), nullptr);
  });
}

TEST(ModuleEngineErrors, MistakesAreNamed) {
  const InitializeOptions alone{.communicator = Communicator::self()};
  const auto with = [&](const std::string& optimizer) {
    return R"({"train_batch_size": 4, "optimizer": )" + optimizer + "}";
  };
  expect_error([&](auto model) { initialize(model, with(R"({"type": "RMSprop"})"), alone); }, "exists only in Python");
  expect_error([&](auto model) { initialize(model, with(R"({"type": "Adam", "params": {"lrr": 1}})"), alone); },
               "did you mean \"lr\"");
  expect_error([&](auto model) { initialize(model, with(R"({"type": "Adam", "params": {"betas": 1}})"), alone); },
               "optimizer.params.betas");
  expect_error(
      [&](auto model) {
        InitializeOptions options = alone;
        options.groups.push_back(ParameterGroup::named({"scale"}, {{"momentun", 0.0}}));
        initialize(model, with(R"({"type": "SGD"})"), options);
      },
      "sets \"momentun\"");
  expect_error(
      [&](auto model) {
        InitializeOptions options = alone;
        options.units = {Unit<LayerImpl>(std::make_shared<LayerImpl>(true))};
        initialize(model, with(R"({"type": "SGD"})"), options);
      },
      "not registered in the model");
  expect_error([&](auto model) { initialize(model, R"({"train_batch_size": 4})", alone)->step(); }, "no optimizer");
  expect_error([&](auto model) { initialize(model, with(R"({"type": "SGD"})"), alone)->backward(at::ones({2})); },
               "scalar");
  expect_error(
      [&](auto model) {
        initialize(model, with(R"({"type": "SGD"})"), alone)->set_full_parameter("skale", at::ones({1}));
      },
      "did you mean \"scale\"");
  expect_error(
      [&](auto model) { (void)initialize(model, with(R"({"type": "SGD"})"), alone)->template module_as<LayerImpl>(); },
      "LayerImpl");
  expect_error(
      [&](auto model) { initialize(model, R"({"train_batch_size": 4, "torch_autocast": {"enabled": true}})", alone); },
      "torch_autocast");
}

}  // namespace
}  // namespace deepscale
