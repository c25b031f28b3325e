// ds_elastic: the batch size of elastic training and the numbers of ranks that can share it, from a configuration file.
// Exit code 0; 1 for a configuration that allows none, or not this number of ranks; 2 for an unusable command line.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "config/config_file.h"
#include "config/elasticity.h"
#include "platform/machine.h"

namespace {

using deepscale::config::Json;

void print_title(const std::string& title) {
  const std::string rule(42, '-');
  fmt::print("{}\n{}\n{}\n", rule, title, rule);
}

void print_elastic_batch(const std::string& path, int64_t world_size) {
  using namespace deepscale::config;
  const Json configuration = parse_json_text(read_config_file(path));
  const deepscale::ElasticityOptions options = read_elasticity(configuration);
  const bool given = world_size > 0;
  const bool needed = options.version > 0.1;
  const int64_t ranks = given ? world_size : needed ? environment_data_parallel_size(options) : 0;
  const ElasticBatch batch = elastic_batch(options, ranks);
  const int64_t micro_batch = given ? elastic_micro_batch(options, batch, ranks) : 0;

  print_title("Elasticity config:");
  // Sorted keys, four blanks, as Python prints it.
  fmt::print("{}\n", nlohmann::json::parse(json_to_text(configuration["elasticity"])).dump(4));
  print_title(given ? fmt::format("Calculated results for world size {}:", world_size) : "Calculated results:");
  fmt::print("final_batch_size .... {}\n", batch.train_batch_size);
  fmt::print("valid_gpus .......... {}\n", batch.valid_sizes);
  if (given) fmt::print("micro_batch_size .... {}\n", micro_batch);
}

}  // namespace

int main(int count, char** values) {
  CLI::App app("Prints the batch size of elastic training and the numbers of ranks that can share it.", "ds_elastic");
  std::string path;
  int64_t world_size = 0;
  app.add_option("-c,--config", path, "DeepSpeed configuration with a section 'elasticity'")->required();
  app.add_option("-w,--world-size", world_size, "current number of data-parallel ranks")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  try {
    std::vector<std::string> words = deepscale::program_arguments(count, values);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    print_elastic_batch(path, world_size);
  } catch (const std::exception& error) {
    fmt::print(stderr, "ds_elastic: error: {}\n", error.what());
    return 1;
  }
  return 0;
}
