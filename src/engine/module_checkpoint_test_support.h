// What the tests of checkpoints of the C++ API share: a folder, and a run that trains on ranks as threads.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/run_ranks.h"
#include "engine/module_test_support.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {

inline std::string config_text(const std::string& level, const std::string& more = "",
                               const std::string& optimizer = "AdamW") {
  return R"({"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.5, )" + more + R"("optimizer": {"type": ")" +
         optimizer + R"(", "params": {"lr": 0.004}},
             "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 7, "warmup_type": "linear"}},
             "zero_optimization": {"stage": )" +
         level + R"(, "stage3_param_persistence_threshold": 100,
             "sub_group_size": 3000}})";
}

class ModuleCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    static std::atomic<int> counter{0};
    folder_ = ::testing::TempDir() + "module_checkpoint_" + std::to_string(this_process_id()) + "_" +
              std::to_string(counter++);
    make_directories(folder_);
  }
  void TearDown() override { remove_directories(folder_); }
  std::string folder_;
};

struct Trainer {
  Trainer(const std::string& config, const Communicator& world, std::vector<ParameterGroup> groups = {})
      : model(std::make_shared<NetImpl>()) {
    model->layers[2]->linear->bias.set_requires_grad(false);
    engine = initialize(model, config, {.communicator = world, .units = model->units(), .groups = std::move(groups)});
  }

  /// Losses of steps first .. last-1.
  std::vector<double> train(int first, int last) {
    std::vector<double> losses;
    const auto dtype = model->scale.scalar_type();
    for (int step = first; step < last; ++step) {
      const at::Tensor input = pattern({4, kWidth}, 100 + step * 4 + engine->communicator().rank());
      const at::Tensor loss = engine->forward<NetImpl>(input.to(dtype)).to(at::kFloat).sub(input).pow(2).mean();
      losses.push_back(engine->backward(loss).item<double>());
      engine->step();
    }
    return losses;
  }

  std::map<std::string, at::Tensor> weights() {
    std::map<std::string, at::Tensor> all;
    for (const auto& param : model->named_parameters()) all[param.key()] = engine->full_parameter(param.key());
    return all;
  }

  std::shared_ptr<NetImpl> model;
  std::unique_ptr<ModuleEngine> engine;
};

inline void on_ranks(int ranks, const std::function<void(const Communicator&)>& body) {
  run_ranks(ranks, [&](const std::shared_ptr<HostCommunicator>& host) { body(Communicator::host(host)); });
}

inline void expect_same(const std::map<std::string, at::Tensor>& expected,
                        const std::map<std::string, at::Tensor>& actual) {
  for (const auto& [name, weight] : expected) EXPECT_TRUE(at::equal(weight, actual.at(name))) << name;
}

}  // namespace deepscale
