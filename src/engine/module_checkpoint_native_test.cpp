// The native format and the folders of the C++ API: a run goes on bit for bit, at any level and number of ranks, and
// what is not whole is not loaded.
#include <gmock/gmock.h>

#include <fstream>

#include "checkpoint/tag_folder.h"
#include "engine/module_checkpoint_test_support.h"

namespace deepscale {
namespace {

using NativeCheckpoint = ModuleCheckpointTest;

std::string native(const std::string& more = "") {
  return R"("checkpoint": {"format": "native")" + (more.empty() ? more : ", " + more) + "}, ";
}

void flip(const std::string& path) {
  const int64_t place = *file_size(path) / 2;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(place);
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(place);
  file.put(byte);
}

TEST_F(NativeCheckpoint, AResumedRunGoesOnWithTheSameBits) {
  const std::string bf16 = R"("bf16": {"enabled": true}, )";
  const std::string fp16 = R"("fp16": {"enabled": true, "initial_scale_power": 6}, )";
  for (const std::string& more : {std::string(), bf16, fp16}) {
    for (const std::string level : {"0", "1", "2", "3"}) {
      SCOPED_TRACE(more + level);
      const std::string folder = folder_ + "/" + (more.empty() ? "fp32" : more.substr(1, 4)) + level;
      on_ranks(2, [&](const Communicator& world) {
        Trainer whole(config_text(level, native() + more), world);
        whole.train(0, 3);
        whole.model->offset.fill_(0.125);
        whole.engine->save_checkpoint(folder, {.client_state = {{"epoch", int64_t{3}}}});
        const auto expected = whole.train(3, 5);
        Trainer resumed(config_text(level, more), world);  // the format is recognised
        const auto loaded = resumed.engine->load_checkpoint(folder);
        ASSERT_TRUE(loaded.has_value());
        EXPECT_EQ(std::get<int64_t>(loaded->client_state.at("epoch")), 3);
        EXPECT_EQ(loaded->client_state.size(), 1u);
        EXPECT_EQ(resumed.engine->global_steps(), 3);
        EXPECT_EQ(resumed.engine->loss_scale(), whole.engine->loss_scale());
        EXPECT_EQ(resumed.model->offset[0].item<float>(), 0.125f);
        EXPECT_EQ(resumed.train(3, 5), expected);
        EXPECT_EQ(resumed.engine->learning_rates(), whole.engine->learning_rates());
        expect_same(whole.weights(), resumed.weights());
      });
      EXPECT_TRUE(verify_tag(folder + "/global_step3", /*deep=*/true).empty());
    }
  }
}

TEST_F(NativeCheckpoint, AnyLevelAndNumberOfRanksReadsIt) {
  std::map<std::string, at::Tensor> weights, next;
  for (const std::string level : {"0", "2", "3"}) {
    const std::string folder = folder_ + "/" + level;
    on_ranks(2, [&](const Communicator& world) {
      Trainer saved(config_text(level, native()), world);
      saved.train(0, 3);
      saved.engine->save_checkpoint(folder);
      const auto held = saved.weights();
      if (world.rank() == 0) weights = held;
    });
    for (const int ranks : {1, 3}) {
      for (const std::string other : {"0", "1", "3"}) {
        SCOPED_TRACE(level + " -> " + other + " on " + std::to_string(ranks));
        std::map<std::string, at::Tensor> trained;
        on_ranks(ranks, [&](const Communicator& world) {
          Trainer loaded(config_text(other, native()), world);
          ASSERT_TRUE(loaded.engine->load_checkpoint(folder).has_value());
          expect_same(weights, loaded.weights());
          if (ranks != 1) return;
          loaded.train(3, 5);
          trained = loaded.weights();
        });
        if (ranks != 1) continue;
        if (next.empty()) next = trained;
        expect_same(next, trained);  // the optimizer's states came along
      }
    }
  }
}

TEST_F(NativeCheckpoint, TheNewestIntactOneIsLoadedWhenTheLatestIsDamaged) {
  for (const std::string& more : {native(), std::string()}) {
    SCOPED_TRACE(more);
    const std::string folder = folder_ + (more.empty() ? "/deepspeed" : "/native");
    on_ranks(2, [&](const Communicator& world) {
      Trainer trainer(config_text("2", more), world);
      for (int step = 0; step < 2; ++step) {
        trainer.train(step, step + 1);
        trainer.engine->save_checkpoint(folder);
      }
    });
    const std::string latest = folder + "/global_step2";
    EXPECT_EQ(list_directory(folder), (std::vector<std::string>{"global_step1", "global_step2", "latest"}));
    for (const std::string& file : list_directory(latest)) {
      SCOPED_TRACE(file);
      flip(latest + "/" + file);
      on_ranks(2, [&](const Communicator& world) {
        Trainer trainer(config_text("3"), world);
        try {
          (void)trainer.engine->load_checkpoint(folder, {.tag = "global_step2"});
          ADD_FAILURE() << "the damage was not seen";
        } catch (const CheckpointError& error) {
          EXPECT_THAT(error.what(), testing::HasSubstr("all there is global_step1"));
        }
        EXPECT_EQ(trainer.engine->global_steps(), 0);
        EXPECT_EQ(trainer.engine->load_checkpoint(folder)->path, folder + "/global_step1");
        EXPECT_EQ(trainer.engine->global_steps(), 1);
      });
      flip(latest + "/" + file);
    }
  }
}

/// Weights follow from masters, by a collective, while states are read: nobody is left waiting when these are damaged.
TEST_F(NativeCheckpoint, DamageAmongTheStatesOfOneRankIsEverybodys) {
  using Wide = torch::nn::LinearImpl;  // its masters and states lie in different blocks of checksums
  for (const std::string level : {"1", "3"}) {
    SCOPED_TRACE(level);
    const std::string folder = folder_ + "/" + level;
    const auto train = [](ModuleEngine& engine) {
      engine.backward(engine.forward<Wide>(pattern({4, 300}, 7)).pow(2).mean());
      engine.step();
    };
    const auto make = [&](const Communicator& world) {
      return initialize(std::make_shared<Wide>(300, 400), config_text(level, native()), {.communicator = world});
    };
    at::Tensor weight;
    on_ranks(2, [&](const Communicator& world) {
      const auto engine = make(world);
      train(*engine);
      engine->save_checkpoint(folder, {.tag = "good"});
      engine->save_checkpoint(folder, {.tag = "bad"});
      const at::Tensor held = engine->full_parameter("weight");
      if (world.rank() == 0) weight = held;
    });
    flip(folder + "/bad/rank_00001.safetensors");
    on_ranks(2, [&](const Communicator& world) {
      const auto engine = make(world);
      EXPECT_THROW((void)engine->load_checkpoint(folder, {.tag = "bad"}), CheckpointError);
      EXPECT_THROW(train(*engine), Error);
    });
    on_ranks(2, [&](const Communicator& world) {
      const auto engine = make(world);
      ASSERT_TRUE(engine->load_checkpoint(folder, {.tag = "good"}).has_value());
      EXPECT_TRUE(at::equal(engine->full_parameter("weight"), weight));
    });
  }
}

TEST_F(NativeCheckpoint, WritingBesideTrainingKeepsTheStateOfTheCall) {
  std::map<std::string, at::Tensor> weights;
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("2", native(R"("async_save": true, "keep_last": 2)")), world);
    for (int step = 0; step < 4; ++step) {
      trainer.train(step, step + 1);
      trainer.engine->save_checkpoint(folder_);
    }
    const auto held = trainer.weights();
    if (world.rank() == 0) weights = held;
    trainer.train(4, 6);
    trainer.engine->wait_for_checkpoint();
    EXPECT_EQ(list_directory(folder_), (std::vector<std::string>{"global_step3", "global_step4", "latest"}));
    Trainer other(config_text("3"), world);
    EXPECT_EQ(other.engine->load_checkpoint(folder_)->path, folder_ + "/global_step4");
    expect_same(weights, other.weights());
  });
}

TEST_F(NativeCheckpoint, ASaveBesideTrainingThatFailsIsSaidAndLeavesNothing) {
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("2", native(R"("async_save": true)")), world);
    trainer.train(0, 1);
    if (world.rank() == 0) {
      make_directories(folder_);
      std::ofstream(folder_ + "/bad") << "a file where the checkpoint is to stand";
    }
    trainer.engine->save_checkpoint(folder_, {.tag = "bad"});
    trainer.train(1, 3);  // goes on
    EXPECT_THROW(trainer.engine->wait_for_checkpoint(), Error);
    world.barrier("test");
    EXPECT_EQ(list_directory(folder_), (std::vector<std::string>{"bad"}));
    trainer.engine->save_checkpoint(folder_, {.tag = "runs/good"});
    trainer.engine->wait_for_checkpoint();
    Trainer other(config_text("2"), world);
    EXPECT_EQ(other.engine->load_checkpoint(folder_)->path, folder_ + "/runs/good");
  });
}

TEST_F(NativeCheckpoint, WhatDoesNotFitIsNotReplacedByAnOlderOne) {
  on_ranks(2, [&](const Communicator& world) {
    {
      Trainer trainer(config_text("1", native()), world);
      trainer.train(0, 1);
      trainer.engine->save_checkpoint(folder_);
    }
    std::string sgd = config_text("1", native());
    const size_t place = sgd.find("AdamW");
    ASSERT_NE(place, std::string::npos) << sgd;
    sgd.replace(place, 5, "Lion");
    Trainer trainer(sgd, world);
    EXPECT_THROW((void)trainer.engine->load_checkpoint(folder_), CheckpointError);  // Adam's exp_avg is not Lion's
    EXPECT_TRUE(trainer.engine->load_checkpoint(folder_, {.optimizer_states = false}).has_value());
    trainer.train(1, 3);
    trainer.engine->save_checkpoint(folder_);
    Trainer adam(config_text("1", native()), world);
    EXPECT_THROW((void)adam.engine->load_checkpoint(folder_), CheckpointError);  // though an older one would do
    EXPECT_TRUE(adam.engine->load_checkpoint(folder_, {.tag = "global_step1"}).has_value());
  });
}

TEST_F(NativeCheckpoint, AnUnfinishedOneAndAUniversalOneAreNamedAsSuch) {
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("1", native()), world);
    trainer.engine->save_checkpoint(folder_, {.tag = "older"});
    trainer.engine->save_checkpoint(folder_, {.tag = "t"});
    const auto why_not = [&] {
      try {
        (void)trainer.engine->load_checkpoint(folder_, {.tag = "t"});
        return std::string("it was loaded");
      } catch (const CheckpointError& error) {
        return std::string(error.what());
      }
    };
    const auto change = [&](const auto& what) {
      world.barrier("test");
      if (world.rank() == 0) what();
      world.barrier("test");
    };
    change([&] { remove_file(folder_ + "/t/manifest.json"); });
    EXPECT_THAT(why_not(), testing::AnyOf(testing::HasSubstr("manifest.json"), testing::HasSubstr("see that rank")));
    change([&] {
      remove_file(folder_ + "/t/common.pt");
      make_directories(folder_ + "/t/zero");
      std::ofstream(folder_ + "/t/mp_rank_00_model_states.pt") << "x";
    });
    EXPECT_THAT(why_not(), testing::HasSubstr("universal checkpoint"));
    EXPECT_THROW((void)trainer.engine->load_checkpoint(folder_), CheckpointError) << "`latest` names it";
  });
}

TEST_F(NativeCheckpoint, ASaveThatFailsChangesNothing) {
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("3", native()), world);
    trainer.train(0, 1);
    trainer.engine->save_checkpoint(folder_);
    trainer.train(1, 2);
    const std::string target = folder_ + "/latest/x";  // below a file
    EXPECT_THROW(trainer.engine->save_checkpoint(target), Error);
    EXPECT_EQ(trainer.engine->load_checkpoint(folder_)->path, folder_ + "/global_step1");
  });
}

}  // namespace
}  // namespace deepscale
