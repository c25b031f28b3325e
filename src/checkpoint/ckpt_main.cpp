// ds_ckpt: what is in a checkpoint, whether it is intact, what is different in two of them, and copies in other forms.
// Exit status: 0; 1 when a checkpoint is damaged or two are different; 2 for what could not be done at all.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/ckpt_listing.h"
#include "checkpoint/ckpt_progress.h"
#include "checkpoint/tag_verify.h"
#include "checkpoint/tensor_diff.h"
#include "checkpoint/tensor_export.h"
#include "memory/memory_plan.h"
#include "platform/files.h"
#include "platform/machine.h"

namespace {

using namespace deepscale;

struct Request {
  std::string path, tag, pattern;
  std::string other, other_tag, format, dtype = "fp32", shard_size = "5GB";
  int threads = 0, ranks = 0;
  bool json = false, strict = false, weights = false, overwrite = false, no_latest = false;
};

int thread_count(const Request& request) {
  if (request.threads > 0) return request.threads;
  return std::clamp(static_cast<int>(usable_cpus().size()), 1, 8);
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

int list(const Request& request) {
  const bool one =
      !request.tag.empty() || !request.pattern.empty() || checkpoint_kind(request.path) != CheckpointKind::kNone;
  if (one) {
    const std::string folder = find_checkpoint(request.path, request.tag);
    fmt::print("{}", request.json ? tag_json(folder, request.pattern) : tag_text(folder, request.pattern));
    return 0;
  }
  DS_CHECK_AS(CheckpointError, is_directory(request.path), "there is no folder {}", request.path);
  const std::vector<TagSummary> tags = summarize_tags(request.path);
  DS_CHECK_AS(CheckpointError, !tags.empty(), "{} holds no checkpoints", request.path);
  fmt::print("{}", request.json ? tags_json(tags) : tags_table(tags, now()));
  return 0;
}

int verify(const Request& request) {
  const std::string folder = find_checkpoint(request.path, request.tag);
  CkptProgress progress("verifying", bytes_to_verify(folder));
  const VerifyReport report = verify_checkpoint(
      folder, {.threads = thread_count(request), .read = [&](int64_t bytes) { progress.add(bytes); }});
  const double seconds = progress.seconds();
  const bool bad = !report.problems.empty() || (request.strict && !report.notes.empty());
  if (request.json) {
    const nlohmann::ordered_json json = {{"folder", folder},
                                         {"format", std::string(name_of(report.kind))},
                                         {"manifest", report.has_manifest},
                                         {"intact", !bad},
                                         {"files", report.files},
                                         {"tensors", report.tensors},
                                         {"bytes", report.bytes},
                                         {"seconds", seconds},
                                         {"problems", report.problems},
                                         {"notes", report.notes}};
    fmt::print("{}\n", json.dump(2));
    return bad ? 1 : 0;
  }
  for (const std::string& line : report.problems) fmt::print("{}\n", line);
  for (const std::string& line : report.notes) fmt::print("note: {}\n", line);
  fmt::print("{}: {} ({}, {} files, {} read in {:.1f} s, {:.2f} GB/s)\n", folder,
             bad                   ? "NOT INTACT"
             : report.has_manifest ? "intact"
                                   : "no damage found",
             name_of(report.kind), report.files, readable_bytes(progress.done()), seconds,
             static_cast<double>(progress.done()) / 1e9 / std::max(seconds, 1e-3));
  return bad ? 1 : 0;
}

nlohmann::ordered_json difference_json(const TensorDifference& found) {
  return {{"name", found.name},
          {"what", found.what},
          {"elements", found.numel},
          {"different", found.different},
          {"first_different", found.first_different},
          {"max_abs_difference", found.largest},
          {"not_numbers", found.not_numbers}};
}

std::string difference_text(const TensorDifference& found) {
  std::string text = found.name + ": " + found.what;
  if (found.numel == 0) return text;
  if (!found.what.empty()) text += "; ";
  if (found.different == 0) return text + "the same values";
  text += fmt::format("{} of {} elements are different, first element {}, largest difference {:.6g}", found.different,
                      found.numel, found.first_different, found.largest);
  if (found.not_numbers > 0) text += fmt::format(", {} with NaN on a side", found.not_numbers);
  return text;
}

int diff(const Request& request) {
  const auto first = TensorSource::open(find_checkpoint(request.path, request.tag));
  const auto second = TensorSource::open(find_checkpoint(request.other, request.other_tag));
  DiffOptions options;
  const bool files = first->kind() == CheckpointKind::kSafetensors || second->kind() == CheckpointKind::kSafetensors;
  options.weights_only = request.weights || files;
  if (!request.pattern.empty()) {
    options.wanted = [&](const std::string& name) { return fits_pattern(name, request.pattern); };
  }
  int64_t total = 0;
  for (const SourceTensor& tensor : first->tensors()) {
    if (!options.weights_only || !tensor.weight.empty()) total += tensor.numel() * size_of(tensor.dtype);
  }
  CkptProgress progress("comparing", total);
  options.read = [&](int64_t bytes) { progress.add(bytes); };
  const DiffReport report = compare_tensors(*first, *second, options);
  if (request.json) {
    nlohmann::ordered_json json = {{"equal", report.equal()},
                                   {"compared", report.compared},
                                   {"identical", report.identical},
                                   {"weights_only", options.weights_only},
                                   {"differences", nlohmann::ordered_json::array()}};
    for (const auto& found : report.differences) json["differences"].push_back(difference_json(found));
    fmt::print("{}\n", json.dump(2));
    return report.equal() ? 0 : 1;
  }
  for (const auto& found : report.differences) fmt::print("{}\n", difference_text(found));
  fmt::print("{} {} in both, {} of them bit for bit the same; {} differences\n", report.compared,
             options.weights_only ? "weights" : "tensors", report.identical, report.differences.size());
  return report.equal() ? 0 : 1;
}

DType wanted_dtype(const std::string& name) {
  if (name == "bf16" || name == "bfloat16") return DType::kBFloat16;
  if (name == "fp16" || name == "float16") return DType::kFloat16;
  return DType::kFloat32;
}

void check_target_format(const std::string& format) {
  if (format == "safetensors") return;
  std::string advice = "load the checkpoint into an engine and save it there with checkpoint.format";
  if (format == "universal") advice = "use `python -m deepspeed.checkpoint.ds_to_universal`";
  if (format == "bin")
    advice = "use `python zero_to_fp32.py`, which stands beside `latest` for checkpoints in DeepSpeed's layout";
  if (format == "native" || format == "deepspeed") advice += fmt::format(" = \"{}\"", format);
  ds_throw<UnsupportedError>("--to {}: only --to safetensors is made here; {}", format, advice);
}

int convert(const Request& request) {
  check_target_format(request.format);
  WeightOptions options;
  options.shard_bytes = parse_bytes(request.shard_size, "--max_shard_size");
  options.dtype = wanted_dtype(request.dtype);
  options.overwrite = request.overwrite;
  const std::string folder = find_checkpoint(request.path, request.tag);
  const auto source = TensorSource::open(folder);
  if (source->kind() == CheckpointKind::kDeepSpeed || source->kind() == CheckpointKind::kUniversal) {
    CkptProgress checking("verifying", bytes_to_verify(folder));  // reading parts of these files checks nothing
    const VerifyReport report = verify_checkpoint(
        folder, {.threads = thread_count(request), .read = [&](int64_t bytes) { checking.add(bytes); }});
    DS_CHECK_AS(CheckpointError, report.problems.empty(), "{}", report.problems.empty() ? "" : report.problems.front());
  }
  CkptProgress progress("writing", weight_bytes(*source, options.dtype));
  options.written = [&](int64_t bytes) { progress.add(bytes); };
  const WeightFiles files = write_weights(*source, request.other, options);
  fmt::print(
      "{}: {} tensors, {} in {}\n", request.other, files.tensors, readable_bytes(files.bytes),
      files.names.size() == 1 ? files.names.front() : fmt::format("{} files and an index", files.names.size() - 1));
  return 0;
}

int reshard(const Request& request) {
  const std::string folder = find_checkpoint(request.path, request.tag);
  ReshardOptions options;
  options.ranks = request.ranks;
  options.tag = request.other_tag.empty() ? last_name(folder) : request.other_tag;
  options.overwrite = request.overwrite;
  options.write_latest = !request.no_latest;
  CkptProgress progress("writing", bytes_to_verify(folder));
  options.written = [&](int64_t bytes) { progress.add(bytes); };
  reshard_checkpoint(folder, request.other, options);
  fmt::print("{}/{}: slices for {} ranks\n", request.other, options.tag, options.ranks);
  return 0;
}

void add_place(CLI::App& command, Request& request) {
  command.add_option("dir", request.path, "folder of tags (then the one in its file `latest`), or of one checkpoint")
      ->required();
  command.add_option("--tag,-t", request.tag, "which tag of the folder");
}

void add_list(CLI::App& app, Request& request, int& status) {
  CLI::App* const command = app.add_subcommand("ls", "lists the checkpoints of a folder, or the tensors of one");
  command->add_option("dir", request.path, "folder of tags, or of one checkpoint")->required();
  command->add_option("--tag,-t", request.tag,
                      "list the tensors of this tag (with --name and without it: of the one in `latest`)");
  command->add_option("--name", request.pattern, "only tensors whose names fit, such as 'fp32/layers.*'");
  command->add_flag("--json", request.json, "print JSON");
  command->callback([&] { status = list(request); });
}

void add_verify(CLI::App& app, Request& request, int& status) {
  CLI::App* const command =
      app.add_subcommand("verify", "reads every byte of a checkpoint; exit status 0 only when it is intact");
  add_place(*command, request);
  command->add_option("--threads", request.threads, "that read at the same time; 0: by the number of CPUs")
      ->check(CLI::Range(0, 256));
  command->add_flag("--strict", request.strict, "what is only a note otherwise (other files in the folder) counts too");
  command->add_flag("--json", request.json, "print JSON");
  command->callback([&] { status = verify(request); });
}

void add_diff(CLI::App& app, Request& request, int& status) {
  CLI::App* const command = app.add_subcommand(
      "diff", "compares the tensors of two checkpoints; exit status 0: equal, 1: different, 2: an error");
  command->add_option("a", request.path, "folder of tags, of one checkpoint, or of safetensors weights")->required();
  command->add_option("b", request.other, "the other one")->required();
  command->add_option("--tag_a", request.tag, "which tag of the first folder");
  command->add_option("--tag_b", request.other_tag, "which tag of the second folder");
  command->add_option("--name", request.pattern, "only tensors whose names fit, such as 'fp32/layers.*'");
  command->add_flag("--weights", request.weights, "only weights, no states of the optimizer");
  command->add_flag("--json", request.json, "print JSON");
  command->callback([&] { status = diff(request); });
}

void add_convert(CLI::App& app, Request& request, int& status) {
  CLI::App* const command =
      app.add_subcommand("convert", "writes the weights of a checkpoint as a model's safetensors files");
  command->add_option("src", request.path, "folder of tags, of one checkpoint, or of safetensors weights")->required();
  command->add_option("dst", request.other, "folder for the files; other files in it stay")->required();
  command->add_option("--tag,-t", request.tag, "which tag of the folder");
  command->add_option("--to", request.format, "safetensors")
      ->required()
      ->check(CLI::IsMember({"safetensors", "native", "deepspeed", "universal", "bin"}));
  command->add_option("--dtype", request.dtype, "of floating-point tensors: fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16", "float32", "bfloat16", "float16"}));
  command->add_option("--max_shard_size", request.shard_size, "largest file, such as 5GB or 500MiB");
  command->add_flag("--overwrite", request.overwrite, "replace weights that are in the folder");
  command->callback([&] { status = convert(request); });
}

void add_reshard(CLI::App& app, Request& request, int& status) {
  CLI::App* const command = app.add_subcommand(
      "reshard",
      "copies a native checkpoint with its slices cut for another number of ranks (never needed for loading)");
  command->add_option("src", request.path, "folder of tags, or of one checkpoint")->required();
  command->add_option("dst", request.other, "folder of tags for the copy")->required();
  command->add_option("--tag,-t", request.tag, "which tag of the source folder");
  command->add_option("--world", request.ranks, "number of ranks, which is the number of files")
      ->required()
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--as", request.other_tag, "tag of the copy; without it: as the source");
  command->add_flag("--overwrite", request.overwrite, "replace a checkpoint of that tag, also the source itself");
  command->add_flag("--no_latest", request.no_latest, "leave the file `latest` in dst as it is");
  command->callback([&] { status = reshard(request); });
}

/// CLI11 says of an unknown command that there is none.
void check_command(const CLI::App& app, const std::vector<std::string>& words) {
  if (words.empty() || words[0].starts_with("-")) return;
  std::vector<std::string> names;
  for (const CLI::App* const command : app.get_subcommands({})) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), words[0]) != names.end()) return;
  ds_throw<Error>("there is no command {}; the commands are {}", printable(words[0]), fmt::join(names, ", "));
}

}  // namespace

int main(int count, char** values) {
  CLI::App app("Looks into checkpoints, checks, compares and converts them. Nothing of a file is executed.", "ds_ckpt");
  app.require_subcommand(1);
  Request request;
  int status = 0;
  add_list(app, request, status);
  add_verify(app, request, status);
  add_diff(app, request, status);
  add_convert(app, request, status);
  add_reshard(app, request, status);
  try {
    std::vector<std::string> words = program_arguments(count, values);
    check_command(app, words);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
    return status;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "ds_ckpt: error: {}\n", error.what());
    return 2;
  }
}
