// Generates with a Llama or OPT folder of Hugging Face, weights in memory or in a file, without Python.
//
//   llama_cpp --model /models/llama-2-7b --weights_folder /local/disk --prompt_ids 1,3681,338 --tokens 32
//
// Prompts are token ids: a tokenizer is not this program's business. The output is one line of JSON.
#include <ATen/Functions.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "deepscale/inference.h"

namespace {

struct Arguments {
  std::string model;
  deepscale::CausalLmOptions options;
  std::vector<int64_t> prompt = {1};
  int64_t batch = 1;
  int64_t tokens = 16;
  bool print_logits = false;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void add_options(CLI::App& app, Arguments& arguments) {
  app.add_option("--model", arguments.model, "folder with config.json and safetensors files")->required();
  app.add_option("--weights_folder", arguments.options.weights_folder, "matrices live in a file in this folder");
  app.add_option("--max_resident", arguments.options.max_resident, "elements of them that stay in memory");
  app.add_option("--dtype", arguments.options.dtype, "float32, bfloat16 or float16 (default: what config.json says)");
  app.add_option("--bits", arguments.options.bits, "bits of matrices: 16, 8 or 4");
  app.add_option("--group_size", arguments.options.group_size, "elements that share a scale with 8 or 4 bits");
  app.add_option("--prompt_ids", arguments.prompt, "token ids of the prompt")->delimiter(',');
  app.add_option("--batch", arguments.batch, "copies of the prompt that are generated together")
      ->check(CLI::PositiveNumber);
  app.add_option("--tokens", arguments.tokens, "tokens to generate")->check(CLI::NonNegativeNumber);
  app.add_flag("--print_logits", arguments.print_logits, "the logits after the prompt, too");
}

std::vector<int64_t> list_of(const at::Tensor& ids) {
  const at::Tensor flat = ids.contiguous().view({-1});
  const int64_t* first = flat.const_data_ptr<int64_t>();
  return {first, first + flat.numel()};
}

int run(const Arguments& arguments) {
  const auto start = std::chrono::steady_clock::now();
  const auto model = deepscale::CausalLm::open(arguments.model, arguments.options);
  const double loading = seconds_since(start);
  at::Tensor prompt = at::empty({static_cast<int64_t>(arguments.prompt.size())}, at::kLong);
  for (size_t i = 0; i < arguments.prompt.size(); ++i) prompt[static_cast<int64_t>(i)] = arguments.prompt[i];
  prompt = prompt.view({1, -1}).repeat({arguments.batch, 1});

  nlohmann::json out;
  if (arguments.print_logits) {
    const at::Tensor logits = model->forward(prompt).select(0, 0).to(at::kFloat).contiguous();
    const float* first = logits.const_data_ptr<float>();
    out["logits"] = std::vector<float>(first, first + logits.numel());
  }
  const auto began = std::chrono::steady_clock::now();
  out["ids"] = list_of(model->generate(prompt, arguments.tokens).select(0, 0));
  const double generating = seconds_since(began);
  const deepscale::CausalLmFacts facts = model->facts();
  out["tokens_per_second"] =
      generating > 0 ? static_cast<double>(arguments.batch * arguments.tokens) / generating : 0.0;
  out["seconds_to_load"] = loading;
  out["parameters"] = facts.parameters;
  out["weight_bytes"] = facts.weight_bytes;
  out["checkpoint_bytes_read"] = facts.checkpoint_bytes;
  out["file_bytes_read"] = facts.file_read_bytes;
  out["resident_bytes"] = facts.resident_bytes;
  std::cout << out.dump() << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Generates with a Llama or OPT folder, weights in memory or in a file");
  Arguments arguments;
  add_options(app, arguments);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "llama_cpp: " << error.what() << "\n";
    return 1;
  }
}
