// Trains a GPT on text with any ZeRO stage, without Python. Model, data, configuration files and losses are those of
// examples/gpt/train.py, whose token cache this program reads:
//
//   deepspeed --num_gpus 2 --no_python gpt_cpp --data_cache CACHE --deepspeed_config examples/gpt/ds_config_zero2.json
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <deepscale/deepscale.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <thread>

#include "data.h"
#include "gpt.h"

namespace {

struct Arguments {
  GptConfig model;
  std::string init_from, save_init, data_cache, config, output = "out";
  int64_t max_steps = 300, seed = 1, eval_interval = 50, eval_windows = 64, save_interval = 0;
  bool resume = false, deepspeed = true;
  int local_rank = 0;
};

void add_options(CLI::App& app, Arguments& args) {
  app.add_option("--n_layer", args.model.n_layer)->capture_default_str();
  app.add_option("--d_model", args.model.d_model)->capture_default_str();
  app.add_option("--n_head", args.model.n_head)->capture_default_str();
  app.add_option("--block_size", args.model.block_size, "tokens that the model sees at once")->capture_default_str();
  app.add_option("--init_from", args.init_from, "initial weights (safetensors)");
  app.add_option("--save_init", args.save_init, "writes the initial weights and goes on");
  app.add_option("--data_cache,--data-cache", args.data_cache, "token cache that examples/gpt/train.py made")
      ->required();
  app.add_option("--deepspeed_config", args.config, "ds_config.json")->required();
  app.add_option("--max_steps", args.max_steps, "optimizer steps in all")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", args.seed)->capture_default_str();
  app.add_option("--eval_interval", args.eval_interval)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--eval_windows", args.eval_windows)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--save_interval", args.save_interval, "0: only at the end, -1: never")->capture_default_str();
  app.add_option("--output_dir", args.output, "metrics.jsonl and checkpoints/")->capture_default_str();
  app.add_flag("--resume", args.resume, "goes on from the last checkpoint in --output_dir");
  app.add_flag("--deepspeed", args.deepspeed, "accepted and ignored: this program always uses it");
  app.add_option("--local_rank", args.local_rank, "accepted and ignored: launchers set LOCAL_RANK");
}

/// Divides the machine's cores among its ranks, unless somebody has already chosen.
void share_cores(int ranks) {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  const char* local = std::getenv("LOCAL_WORLD_SIZE");
  const int here = local != nullptr ? std::max(1, std::atoi(local)) : ranks;
  at::set_num_threads(std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / here));
}

double mean_over_ranks(const deepscale::Communicator& world, double value) {
  const at::Tensor total = at::full({1}, value, at::kFloat);
  world.all_reduce(total, deepscale::ReduceOp::kSum, "metrics").wait();
  return (total / world.size()).item<double>();
}

/// Prints on rank 0 and appends to metrics.jsonl there.
class Report {
 public:
  Report(const std::string& folder, bool append, bool visible) : visible_(visible) {
    if (visible_) metrics_.open(folder + "/metrics.jsonl", append ? std::ios::app : std::ios::trunc);
    if (visible_ && !metrics_.good())
      throw std::runtime_error("cannot write " + folder + "/metrics.jsonl: make the folder first");
  }
  void stepped(int64_t step, double loss, double tokens_per_s, double lr) {
    write("{\"step\": %lld, \"loss\": %.17g, \"tokens_per_s\": %.1f, \"lr\": %.17g}\n", step, loss, tokens_per_s, lr);
    if (visible_)
      std::printf("step %lld: loss %.6f, %.0f tokens/s, lr %.2e\n", static_cast<long long>(step), loss, tokens_per_s,
                  lr);
    std::fflush(stdout);
  }
  void evaluated(int64_t step, double loss) {
    write("{\"step\": %lld, \"eval_loss\": %.17g}\n", step, loss);
    if (visible_) std::printf("step %lld: evaluation loss %.4f\n", static_cast<long long>(step), loss);
    std::fflush(stdout);
  }

 private:
  template <typename... Values>
  void write(const char* format, int64_t step, Values... values) {
    if (!visible_) return;
    char line[200];
    std::snprintf(line, sizeof line, format, static_cast<long long>(step), values...);
    metrics_ << line << std::flush;
  }

  bool visible_;
  std::ofstream metrics_;
};

/// Mean cross entropy in nats over all held-out windows, the same number on every rank.
double evaluate(deepscale::ModuleEngine& engine, const EvaluationWindows& windows) {
  const at::NoGradGuard no_grad;
  engine.eval();
  double sum = 0, count = 0;
  for (int64_t i = 0; i < windows.batches(); ++i) {
    const auto [inputs, targets] = windows.batch(i);
    sum += engine.forward<GptImpl>(inputs, targets).item<double>() * static_cast<double>(windows.weight(i));
    count += static_cast<double>(windows.weight(i));
  }
  engine.train();
  return mean_over_ranks(engine.communicator(), sum) / mean_over_ranks(engine.communicator(), count);
}

/// One optimizer step; this rank's loss averaged over its micro-batches.
double train_step(deepscale::ModuleEngine& engine, const TrainingWindows& windows, int64_t step) {
  const int64_t accumulation = engine.gradient_accumulation_steps();
  double sum = 0;
  for (int64_t micro = 0; micro < accumulation; ++micro) {
    const auto [inputs, targets] = windows.batch(step * accumulation + micro);
    const at::Tensor loss = engine.forward<GptImpl>(inputs, targets);
    engine.backward(loss);
    engine.step();
    sum += loss.item<double>();
  }
  return sum / static_cast<double>(accumulation);
}

void save(deepscale::ModuleEngine& engine, const Arguments& args, int64_t step) {
  engine.save_checkpoint(args.output + "/checkpoints", {.client_state = {{"step", step}}});
}

int64_t resume(deepscale::ModuleEngine& engine, const Arguments& args) {
  const auto loaded = engine.load_checkpoint(args.output + "/checkpoints");
  if (!loaded) throw std::runtime_error("--resume: no checkpoint in " + args.output + "/checkpoints");
  return std::get<int64_t>(loaded->client_state.at("step"));
}

void run(const Arguments& given, const deepscale::Communicator& world) {
  Arguments args = given;
  const TextData text = load_text(args.data_cache);
  args.model.vocab_size = text.vocab_size;
  args.model.check();
  auto model = std::make_shared<GptImpl>(args.model);
  model->initialize_values(args.seed);
  if (!args.init_from.empty()) deepscale::load_weights(*model, args.init_from);
  if (!args.save_init.empty() && world.rank() == 0) deepscale::save_weights(*model, args.save_init);
  const auto engine = deepscale::initialize(model, args.config, {.communicator = world, .units = model->units()});

  const TrainingWindows windows(text.train, args.model.block_size, engine->micro_batch_size(), args.seed, world.rank());
  const EvaluationWindows held_out(text.held_out, args.model.block_size, engine->micro_batch_size(), args.eval_windows,
                                   world.rank(), world.size());
  const int64_t first = args.resume ? resume(*engine, args) : 0;
  Report report(args.output, args.resume, world.rank() == 0);
  if (world.rank() == 0) std::cout << engine->description() << std::endl;

  report.evaluated(first, evaluate(*engine, held_out));
  const auto tokens_per_step = static_cast<double>(engine->train_batch_size() * args.model.block_size);
  for (int64_t step = first; step < args.max_steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    const double loss = mean_over_ranks(world, train_step(*engine, windows, step));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    report.stepped(step + 1, loss, tokens_per_step / taken.count(), engine->learning_rates().front());
    const bool last = step + 1 == args.max_steps;
    if ((step + 1) % args.eval_interval == 0 || last) report.evaluated(step + 1, evaluate(*engine, held_out));
    if (args.save_interval > 0 && (step + 1) % args.save_interval == 0 && !last) save(*engine, args, step + 1);
  }
  if (args.save_interval >= 0) save(*engine, args, args.max_steps);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a GPT on text with any ZeRO stage, without Python.");
  Arguments args;
  add_options(app, args);
  CLI11_PARSE(app, argc, argv);
  try {
    const deepscale::Communicator world = deepscale::world_from_environment();
    share_cores(world.size());
    run(args, world);
    world.barrier("end");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpt_cpp: %s\n", error.what());
    return 2;
  }
}
