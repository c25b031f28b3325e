// What tests/crash.sh kills. Saves checkpoints of two ranks whose values follow from their step, and checks what is
// left.
//   checkpoint_crash save DIR    one step after another, from the newest intact one on, until it is killed; three are
//   kept.
//                                A save that fails (a full disk) is tried again
//   checkpoint_crash check DIR   every folder that looks like a checkpoint is whole and has the values of its step;
//   `latest`
//                                names one of them. Prints the newest step. Exit status 1 when something is wrong
#include <fmt/core.h>

#include <charconv>
#include <cstdio>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "checkpoint/save_job.h"
#include "checkpoint/verified_file.h"
#include "platform/files.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

constexpr int kRanks = 2;
constexpr int64_t kNumel = 300'000;

float value_of(int64_t step, int64_t element) {
  return static_cast<float>((step * 7919 + element) % 1'000'003);
}

std::string tag_of(int64_t step) {
  return fmt::format("step{}", step);
}

int64_t step_of(const std::string& tag) {
  int64_t step = -1;
  const char* const end = tag.data() + tag.size();
  const auto [stop, error] = std::from_chars(tag.data() + std::min<size_t>(4, tag.size()), end, step);
  return tag.starts_with("step") && error == std::errc() && stop == end ? step : -1;
}

void save_rank(const std::string& dir, int64_t step, int rank) {
  const int64_t begin = kNumel * rank / kRanks, end = kNumel * (rank + 1) / kRanks;
  std::vector<float> values(end - begin);
  for (int64_t i = begin; i < end; ++i) values[i - begin] = value_of(step, i);
  SavePlan plan;
  plan.save_dir = dir;
  plan.tag = tag_of(step);
  plan.rank = rank;
  plan.tensor_file = fmt::format("rank_{}.safetensors", rank);
  plan.threads = 2;
  plan.commits = rank == 0;
  plan.commit.ranks = kRanks;
  plan.commit.keep_last = 3;
  plan.commit.patience = std::chrono::seconds(10);
  plan.commit.info = fmt::format("{{\"saved_at\": {}}}", step);
  SavedSlice slice{
      "values",    DType::kFloat32,
      {kNumel},    begin,
      end - begin, [&values] {
                     return std::shared_ptr<const void>(std::shared_ptr<void>(), values.data()); },
      true};
  SaveJob job(plan, {slice});
  job.run();
}

int64_t newest_step(const std::string& dir) {
  int64_t newest = -1;
  for (const TagFacts& facts : list_tags(dir)) {
    if (facts.problem.empty()) newest = std::max(newest, step_of(facts.tag));
  }
  return newest;
}

int save(const std::string& dir) {
  for (int64_t step = newest_step(dir) + 1;; ++step) {
    try {
      begin_save(dir, tag_of(step));
      std::exception_ptr other;
      std::thread second([&] {
        try {
          save_rank(dir, step, 1);
        } catch (...) {
          other = std::current_exception();
        }
      });
      try {
        save_rank(dir, step, 0);
      } catch (const Error& error) {
        second.join();
        fmt::print(stderr, "step {}: {}\n", step, error.what());
        --step;
        continue;
      }
      second.join();
      if (other) std::rethrow_exception(other);
    } catch (const Error& error) {
      fmt::print(stderr, "step {}: {}\n", step, error.what());
      --step;
    }
  }
}

/// What is wrong with one checkpoint; empty when nothing is.
std::string problem_of(const std::string& folder, int64_t step) {
  try {
    std::vector<float> values(kNumel, -1.0f);
    CheckpointTensors(folder).read({{"values", 0, kNumel, values.data()}});
    for (int64_t i = 0; i < kNumel; ++i) {
      if (values[i] != value_of(step, i)) return fmt::format("{}: element {} is of another step", folder, i);
    }
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

int check(const std::string& dir) {
  int64_t newest = -1;
  for (const std::string& name : list_directory(dir)) {
    if (name.front() == '.' || !is_directory(dir + "/" + name)) continue;
    const std::string problem = problem_of(dir + "/" + name, step_of(name));
    if (!problem.empty()) {
      fmt::print(stderr, "{}\n", problem);
      return 1;
    }
    newest = std::max(newest, step_of(name));
  }
  std::string latest;
  std::ifstream(native_path(dir + "/latest").c_str()) >> latest;
  if (!latest.empty() && !is_directory(dir + "/" + latest)) {
    fmt::print(stderr, "latest names {}, which does not exist\n", latest);
    return 1;
  }
  fmt::print("{}\n", newest);
  return 0;
}

}  // namespace
}  // namespace deepscale

int main(int count, char** values) {
  const std::vector<std::string> words = deepscale::program_arguments(count, values);
  if (words.size() == 2 && words[0] == "save") return deepscale::save(words[1]);
  if (words.size() == 2 && words[0] == "check") return deepscale::check(words[1]);
  fmt::print(stderr, "usage: checkpoint_crash save|check DIR\n");
  return 2;
}
