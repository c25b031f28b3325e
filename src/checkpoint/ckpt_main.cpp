// ds_ckpt: what is in a checkpoint, whether it is intact, what is different in two of them, and copies in other forms.
// Exit status: 0; 1 when a checkpoint is damaged or two are different; 2 for what could not be done at all.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "checkpoint/ckpt_listing.h"
#include "checkpoint/ckpt_progress.h"
#include "checkpoint/tag_verify.h"
#include "memory/memory_plan.h"
#include "platform/machine.h"

namespace {

using namespace deepscale;

struct Request {
  std::string path, tag, pattern;
  int threads = 0;
  bool json = false, strict = false;
};

int thread_count(const Request& request) {
  if (request.threads > 0) return request.threads;
  return std::clamp(static_cast<int>(usable_cpus().size()), 1, 8);
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

int list(const Request& request) {
  const bool one = !request.tag.empty() || checkpoint_kind(request.path) != CheckpointKind::kNone;
  if (one) {
    const std::string folder = find_checkpoint(request.path, request.tag);
    fmt::print("{}", request.json ? tag_json(folder, request.pattern) : tag_text(folder, request.pattern));
    return 0;
  }
  const std::vector<TagSummary> tags = summarize_tags(request.path);
  DS_CHECK_AS(CheckpointError, !tags.empty(), "{} holds no checkpoints", request.path);
  DS_CHECK_AS(ConfigError, request.pattern.empty(), "--name lists tensors of one checkpoint: choose it with --tag");
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

void add_place(CLI::App& command, Request& request) {
  command.add_option("dir", request.path, "folder of tags (then the one in its file `latest`), or of one checkpoint")
      ->required();
  command.add_option("--tag,-t", request.tag, "which tag of the folder");
}

void add_list(CLI::App& app, Request& request, int& status) {
  CLI::App* const command = app.add_subcommand("ls", "lists the checkpoints of a folder, or the tensors of one");
  command->add_option("dir", request.path, "folder of tags, or of one checkpoint")->required();
  command->add_option("--tag,-t", request.tag, "list the tensors of this tag");
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

}  // namespace

int main(int count, char** values) {
  CLI::App app("Looks into checkpoints, checks, compares and converts them. Nothing of a file is executed.", "ds_ckpt");
  app.require_subcommand(1);
  Request request;
  int status = 0;
  add_list(app, request, status);
  add_verify(app, request, status);
  try {
    std::vector<std::string> words = program_arguments(count, values);
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
