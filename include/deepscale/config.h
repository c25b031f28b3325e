// The configuration of a training run: ds_config.json, parsed, validated and resolved. docs/config.md lists every key.
// A Config is an immutable value, cheap to copy; all methods may be called from any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "deepscale/error.h"
#include "deepscale/options.h"

namespace deepscale {

enum class ParseMode {
  kTraining,  ///< batch sizes must satisfy the batch equation; those not given are filled in
  kZeroInit,  ///< only the model is built: batch sizes may be missing or still "auto" and are neither checked nor
              ///< filled
};

class Config {
 public:
  /// Reads JSON text: comments (//, /* */, #) and trailing commas are allowed, and so are Infinity and Python's null.
  /// data_parallel_size: ranks that share the training batch, at least 1.
  /// Throws ConfigError that lists every problem found: JSON path, what was found, what is expected, what to change.
  static Config parse(std::string_view json_text, int data_parallel_size, ParseMode mode = ParseMode::kTraining);

  /// The same for a file. Throws ConfigError also when the file cannot be read.
  static Config from_file(const std::string& path, int data_parallel_size, ParseMode mode = ParseMode::kTraining);

  /// What `--deepspeed_config` accepts: path of a file, JSON text, or JSON text encoded as base64url.
  static Config open(const std::string& source, int data_parallel_size, ParseMode mode = ParseMode::kTraining);

  const Options& options() const { return state_->options; }
  const Options* operator->() const { return &state_->options; }
  int data_parallel_size() const { return state_->data_parallel_size; }

  /// Settings that are unknown, deprecated or without effect: one sentence each, beginning with the JSON path.
  const std::vector<std::string>& warnings() const { return state_->warnings; }

  /// Every key of every section with the value in force, under its principal name; parse() reads it back to an equal
  /// Config without warnings. null: not set (steps_per_print: never). 9223372036854775807: unlimited. An infinite
  /// number inside optimizer.params or scheduler.params is written as Infinity, as Python does. indent < 0: on one
  /// line.
  std::string to_json(int indent = -1) const;

  /// The same as lines "zero_optimization.stage = 2", for the log.
  std::string to_text() const;

  /// What the user wrote, as strict JSON (comments gone, Infinity kept).
  const std::string& source_json() const { return state_->source_json; }

 private:
  struct State {
    Options options;
    int data_parallel_size = 1;
    std::vector<std::string> warnings;
    std::string source_json;
  };
  explicit Config(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  std::shared_ptr<const State> state_;
};

}  // namespace deepscale
