// Checkpoints of the public C++ API over ranks as threads: a resumed run goes on with the same bits, any stage reads
// any other's files, and damaged or missing files end in an error that names them and leave the engine as it was.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "engine/module_checkpoint_test_support.h"
#include "platform/files.h"

namespace deepscale {
namespace {

using Checkpoint = ModuleCheckpointTest;

TEST_F(Checkpoint, AResumedRunGoesOnWithTheSameBits) {
  const std::string fp16 = R"("fp16": {"enabled": true, "loss_scale": 64},)";
  for (const std::string& more : {std::string(), std::string(R"("bf16": {"enabled": true},)"), fp16}) {
    for (const std::string level : {"0", "1", "2", "3"}) {
      SCOPED_TRACE(more + level);
      const std::string folder = folder_ + "/" + (more.empty() ? "fp32" : more.substr(1, 4)) + level;
      on_ranks(2, [&](const Communicator& world) {
        Trainer whole(config_text(level, more), world);
        whole.train(0, 3);
        whole.model->offset.fill_(0.125);
        whole.engine->save_checkpoint(folder, {.client_state = {{"epoch", int64_t{3}}, {"name", "a run"}}});
        const auto expected = whole.train(3, 5);

        Trainer resumed(config_text(level, more), world);
        const auto loaded = resumed.engine->load_checkpoint(folder);
        ASSERT_TRUE(loaded.has_value());
        EXPECT_EQ(loaded->path, folder + "/global_step3");
        EXPECT_EQ(std::get<int64_t>(loaded->client_state.at("epoch")), 3);
        EXPECT_EQ(std::get<std::string>(loaded->client_state.at("name")), "a run");
        EXPECT_EQ(loaded->client_state.size(), 2u);
        EXPECT_EQ(resumed.engine->global_steps(), 3);
        EXPECT_EQ(resumed.engine->global_samples(), 24);
        EXPECT_EQ(resumed.model->offset[0].item<float>(), 0.125f);
        EXPECT_EQ(resumed.train(3, 5), expected);
        EXPECT_EQ(resumed.engine->learning_rates(), whole.engine->learning_rates());
        expect_same(whole.weights(), resumed.weights());
      });
      for (const auto& file : list_directory(folder + "/global_step3")) remove_file(folder + "/global_step3/" + file);
      remove_file(folder + "/global_step3");
    }
  }
}

TEST_F(Checkpoint, AnyStageAndNumberOfRanksReadsAnyOthersFiles) {
  for (const std::string from : {"0", "1", "3"}) {
    const std::string folder = folder_ + "/" + from;
    std::vector<double> expected;
    std::map<std::string, at::Tensor> weights;
    on_ranks(2, [&](const Communicator& world) {
      Trainer trainer(config_text(from), world);
      trainer.train(0, 3);
      trainer.engine->save_checkpoint(folder, {.tag = "t"});
      const auto saved = trainer.weights();
      if (world.rank() == 0) weights = saved;
    });
    for (const std::string to : {"0", "2", "3"}) {
      for (const int ranks : {1, 2, 3}) {
        SCOPED_TRACE(from + " to " + to + " on " + std::to_string(ranks));
        on_ranks(ranks, [&](const Communicator& world) {
          Trainer trainer(config_text(to), world);
          ASSERT_TRUE(trainer.engine->load_checkpoint(folder, {.tag = "t"}).has_value());
          expect_same(weights, trainer.weights());
          if (ranks != 2) return;
          const auto losses = trainer.train(3, 5);
          if (world.rank() != 0) return;
          if (expected.empty()) expected = losses;
          EXPECT_EQ(losses, expected);
        });
      }
    }
    for (const auto& file : list_directory(folder + "/t")) remove_file(folder + "/t/" + file);
    remove_file(folder + "/t");
  }
}

TEST_F(Checkpoint, EveryOptimizersStatesComeBack) {
  for (const std::string optimizer : {"Lion", "Adagrad", "SGD", "Lamb", "Muon"}) {
    for (const std::string level : {"0", "2", "3"}) {
      SCOPED_TRACE(optimizer + level);
      on_ranks(2, [&](const Communicator& world) {
        Trainer whole(config_text(level, "", optimizer), world);
        whole.train(0, 2);
        whole.engine->save_checkpoint(folder_, {.tag = "t"});
        const auto expected = whole.train(2, 4);
        Trainer resumed(config_text(level, "", optimizer), world);
        resumed.engine->load_checkpoint(folder_, {.tag = "t"});
        EXPECT_EQ(resumed.train(2, 4), expected);
      });
      for (const auto& file : list_directory(folder_ + "/t")) remove_file(folder_ + "/t/" + file);
    }
  }
}

TEST_F(Checkpoint, AdagradsStateIsFoundUnderTheNameThatItHasWhereItWasSaved) {
  const std::string offloaded = R"(2, "offload_optimizer": {"device": "cpu"})";
  for (const auto& [before, after] : {std::pair<std::string, std::string>{"2", offloaded}, {offloaded, "2"}}) {
    SCOPED_TRACE(before + " to " + after);
    on_ranks(2, [&, &before = before, &after = after](const Communicator& world) {
      Trainer whole(config_text(before, "", "Adagrad"), world);
      whole.train(0, 2);
      whole.engine->save_checkpoint(folder_, {.tag = "t"});
      const auto expected = whole.train(2, 4);
      Trainer resumed(config_text(after, "", "Adagrad"), world);
      resumed.engine->load_checkpoint(folder_, {.tag = "t"});
      EXPECT_EQ(resumed.train(2, 4), expected);
    });
  }
}

TEST_F(Checkpoint, StatesOfAnotherOptimizerAreRefused) {
  for (const std::string level : {"0", "2", "3"}) {
    SCOPED_TRACE(level);
    on_ranks(1, [&](const Communicator& world) {
      Trainer lion(config_text(level, "", "Lion"), world);
      lion.train(0, 2);
      lion.engine->save_checkpoint(folder_, {.tag = "t"});
      Trainer adam(config_text(level), world);
      const auto before = adam.weights();
      EXPECT_THROW(adam.engine->load_checkpoint(folder_), CheckpointError);
      expect_same(before, adam.weights());
      ASSERT_TRUE(adam.engine->load_checkpoint(folder_, {.optimizer_states = false}).has_value());
      expect_same(lion.weights(), adam.weights());
    });
  }
}

TEST_F(Checkpoint, GroupsSettingsAndTheLossScaleComeBack) {
  const std::string fp16 = R"("fp16": {"enabled": true, "initial_scale_power": 6, "hysteresis": 1},)";
  on_ranks(2, [&](const Communicator& world) {
    const std::vector<ParameterGroup> groups = {ParameterGroup::named({"scale"}, {{"weight_decay", 0.5}})};
    Trainer whole(config_text("3", fp16), world, groups);
    whole.engine->set_learning_rates({0.5, 0.25});
    whole.train(0, 1);
    whole.engine->save_checkpoint(folder_);
    Trainer resumed(config_text("3", R"("fp16": {"enabled": true, "initial_scale_power": 9},)"), world, groups);
    EXPECT_EQ(resumed.engine->loss_scale(), 512);
    resumed.engine->load_checkpoint(folder_);
    EXPECT_EQ(resumed.engine->loss_scale(), 64);
    EXPECT_EQ(resumed.engine->learning_rates(), whole.engine->learning_rates());
    Trainer other(config_text("3", fp16), world);
    EXPECT_THROW(other.engine->load_checkpoint(folder_), CheckpointError);  // one group instead of two
  });
}

TEST_F(Checkpoint, WeightsAloneLoadWithoutOptimizerFiles) {
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("2"), world);
    trainer.train(0, 2);
    trainer.engine->save_checkpoint(folder_);
    if (world.rank() == 0) {
      for (int r = 0; r < 2; ++r) {
        remove_file(folder_ + "/global_step2/zero_pp_rank_" + std::to_string(r) + "_mp_rank_00_optim_states.pt");
      }
    }
    world.barrier("removed");
    Trainer fresh(config_text("3"), world);
    EXPECT_THROW(fresh.engine->load_checkpoint(folder_), CheckpointError);
    ASSERT_TRUE(fresh.engine->load_checkpoint(folder_, {.module_only = true}).has_value());
    EXPECT_EQ(fresh.engine->global_steps(), 0);
    expect_same(trainer.weights(), fresh.weights());
    fresh.engine->save_weights(folder_ + "/weights.safetensors");
    world.barrier("saved");
    const auto model = std::make_shared<NetImpl>();
    load_weights(*model, folder_ + "/weights.safetensors");
    EXPECT_TRUE(at::equal(model->scale, fresh.engine->full_parameter("scale")));
    EXPECT_TRUE(at::equal(model->head->weight, fresh.engine->full_parameter("head.weight")));
  });
}

TEST_F(Checkpoint, OneOfAnEngineThatHadNotSteppedTakesBackWhatItsReaderHasDone) {
  for (const std::string level : {"0", "1", "2", "3"}) {
    SCOPED_TRACE(level);
    on_ranks(2, [&](const Communicator& world) {
      Trainer trainer(config_text(level), world);
      trainer.engine->save_checkpoint(folder_, {.tag = "start" + level});
      const auto expected = trainer.train(0, 3);
      // Half a window is forgotten, too.
      const at::Tensor input = pattern({4, kWidth}, 9);
      trainer.engine->backward(trainer.engine->forward<NetImpl>(input).pow(2).mean());
      ASSERT_TRUE(trainer.engine->load_checkpoint(folder_, {.tag = "start" + level}).has_value());
      EXPECT_EQ(trainer.train(0, 3), expected);
    });
  }
}

TEST_F(Checkpoint, ARankThatCannotWriteIsNamedByTheOthersAndTrainingGoesOn) {
  std::ofstream(folder_ + "/file") << "x";
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("2", R"("bf16": {"enabled": true},)"), world);
    trainer.train(0, 1);
    try {
      trainer.engine->save_checkpoint(folder_ + "/file/inside", {.tag = "t"});
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      const std::string part = world.rank() == 0 ? "cannot make the folder" : "rank 0 failed";
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
    trainer.train(1, 3);
    EXPECT_EQ(trainer.engine->global_steps(), 3);
    trainer.engine->save_checkpoint(folder_, {.tag = "t"});
  });
  EXPECT_EQ(list_directory(folder_), (std::vector<std::string>{"file", "latest", "t"}));
}

std::string read_all(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST_F(Checkpoint, CutAndMissingFilesAreNamedAndChangeNothing) {
  for (const std::string level : {"2", "3"}) {
    const std::string tag = folder_ + "/global_step2";
    on_ranks(2, [&](const Communicator& world) {
      Trainer trainer(config_text(level), world);
      trainer.train(0, 2);
      trainer.engine->save_checkpoint(folder_);
    });
    for (const auto& name : list_directory(tag)) {
      const std::string path = tag + "/" + name, bytes = read_all(path);
      for (const double part : {-1.0, 0.0, 0.4, 0.9, 0.999}) {
        if (name == "manifest.json" && part < 0) continue;  // then it is another program's, and is loaded unchecked
        SCOPED_TRACE(path + " " + std::to_string(part));
        remove_file(path);
        if (part >= 0) {
          std::ofstream(path, std::ios::binary)
              << bytes.substr(0, static_cast<size_t>(static_cast<double>(bytes.size()) * part));
        }
        on_ranks(2, [&](const Communicator& world) {
          Trainer trainer(config_text(level), world);
          const auto before = trainer.weights();
          try {
            trainer.engine->load_checkpoint(folder_);
            ADD_FAILURE() << "no error";
          } catch (const CheckpointError& error) {
            EXPECT_NE(std::string(error.what()).find(folder_), std::string::npos) << error.what();
            // What only one rank reads, it alone names.
            const std::string text = error.what();
            const bool told = name.starts_with("rank_") && text.find("failed, this rank did not") != std::string::npos;
            if (part >= 0 && !told) {
              EXPECT_NE(text.find(name), std::string::npos) << text;
            }
          }
          EXPECT_EQ(trainer.engine->global_steps(), 0);
          expect_same(before, trainer.weights());
        });
      }
      std::ofstream(path, std::ios::binary) << bytes;
    }
    on_ranks(2, [&](const Communicator& world) {  // whole again
      Trainer trainer(config_text(level), world);
      EXPECT_TRUE(trainer.engine->load_checkpoint(folder_).has_value());
    });
    for (const auto& file : list_directory(tag)) remove_file(tag + "/" + file);
  }
}

TEST_F(Checkpoint, AForeignModelADirectoryWithoutCheckpointAndReservedKeysAreRefused) {
  struct OtherImpl : torch::nn::Module {
    OtherImpl() : scale(register_parameter("scale", at::ones({3}))) {}
    at::Tensor scale;
  };
  on_ranks(2, [&](const Communicator& world) {
    Trainer trainer(config_text("1"), world);
    trainer.engine->save_checkpoint(folder_, {.tag = "t"});
    const auto other = initialize(std::make_shared<OtherImpl>(), config_text("1"), {.communicator = world});
    EXPECT_THROW(other->load_checkpoint(folder_, {.tag = "t"}), CheckpointError);
    EXPECT_THROW(trainer.engine->load_checkpoint(folder_, {.tag = "none"}), CheckpointError);
    EXPECT_FALSE(trainer.engine->load_checkpoint(folder_ + "/none").has_value());
    EXPECT_THROW(trainer.engine->save_checkpoint(folder_, {.client_state = {{"module", int64_t{1}}}}), ConfigError);
    EXPECT_THROW(trainer.engine->save_checkpoint(""), ConfigError);
    if (world.rank() == 0) std::ofstream(folder_ + "/file") << "x";
    world.barrier("made");
    EXPECT_THROW(trainer.engine->save_checkpoint(folder_ + "/file/inside"), Error);
  });
}

}  // namespace
}  // namespace deepscale
