// Native checkpoints of made-up tensors, for the tests of what ds_ckpt does.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/save_job.h"
#include "checkpoint/torch_archive.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale::test {

/// A folder that is gone after the test.
class CheckpointToolTest : public ::testing::Test {
 protected:
  CheckpointToolTest() : root_(::testing::TempDir() + "checkpoint_tool_" + std::to_string(this_process_id())) {
    remove_directories(root_);
    make_directories(root_);
  }
  ~CheckpointToolTest() override { remove_directories(root_); }

  using Tensors = std::map<std::string, std::vector<float>>;

  /// SAVE_DIR/TAG as so many ranks save it. Tensors have one dimension.
  void save(const std::string& save_dir, const std::string& tag, int ranks, const Tensors& tensors) const {
    begin_save(save_dir, tag);
    PyDocument common;
    PyNode* const root = common.dict();
    PyNode* const shared = common.dict();
    shared->set("head.weight", "layers.2.weight");
    root->set("shared_params", shared);
    common.root = root;
    for (int rank = ranks - 1; rank >= 0; --rank) {  // the one that waits for the others is last
      SavePlan plan;
      plan.save_dir = save_dir;
      plan.tag = tag;
      plan.rank = rank;
      plan.tensor_file = "rank_0000" + std::to_string(rank) + ".safetensors";
      std::vector<SavedArchive> archives;
      if (rank == 0) archives.push_back({"common.pt", torch_file_members(common)});
      plan.commits = rank == 0;
      plan.commit.ranks = ranks;
      plan.commit.info =
          R"({"world": )" + std::to_string(ranks) + R"(, "stage": 3, "global_steps": 7, "saved_at": 100})";
      std::vector<SavedSlice> slices;
      for (const auto& [name, values] : tensors) {
        const auto numel = static_cast<int64_t>(values.size());
        const int64_t begin = numel * rank / ranks, end = numel * (rank + 1) / ranks;
        if (begin == end) continue;
        slices.push_back({name, DType::kFloat32, {numel}, begin, end - begin, [&values = values, begin] {
                            return std::shared_ptr<const void>(std::shared_ptr<void>(), values.data() + begin);
                          }});
      }
      SaveJob(plan, slices, std::move(archives)).run();
    }
  }

  static void flip(const std::string& path, int64_t position) {
    std::fstream file(native_path(path).c_str(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(position);
    const char byte = static_cast<char>(file.get() ^ 4);
    file.seekp(position);
    file.put(byte);
  }

  static std::vector<float> ramp(int64_t numel, float first = 0.0f) {
    std::vector<float> values(numel);
    for (int64_t i = 0; i < numel; ++i) values[i] = first + static_cast<float>(i % 1000);
    return values;
  }

  std::string root_;
};

}  // namespace deepscale::test
