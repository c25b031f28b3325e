#include "checkpoint/tag_summary.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/manifest.h"
#include "checkpoint/tag_folder.h"
#include "checkpoint/torch_archive.h"
#include "config/json_text.h"
#include "platform/files.h"

namespace deepscale {
namespace {

void add_sizes(const std::string& folder, TagSummary& summary) {
  for (const std::string& name : list_directory(folder)) {
    const std::string path = folder + "/" + name;
    if (const auto bytes = file_size(path)) {
      summary.bytes += *bytes;
      ++summary.files;
    } else {
      add_sizes(path, summary);
    }
  }
}

std::optional<int64_t> number_at(const PyValue* value) {
  const int64_t* const number = value == nullptr ? nullptr : value->get_if<int64_t>();
  return number == nullptr ? std::nullopt : std::optional(*number);
}

/// The model-state file of rank 0 says what a manifest would.
void read_model_file(const std::string& folder, TagSummary& summary) {
  for (const char* name : {"mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"}) {
    const std::string path = folder + "/" + name;
    if (!file_size(path)) continue;
    const auto archive = TorchArchive::open(path);
    const PyValue& root = archive.root();
    summary.steps = number_at(root.find("global_steps"));
    summary.ranks = number_at(root.find("dp_world_size"));
    const PyValue* const config = root.find("ds_config");
    const PyValue* const zero = config == nullptr ? nullptr : config->find("zero_optimization");
    summary.zero_level = number_at(zero == nullptr ? nullptr : zero->find("stage"));
    return;
  }
}

void read_info(const std::string& info, TagSummary& summary) {
  summary.ranks = info_number(info, "world");
  summary.zero_level = info_number(info, "stage");
  summary.steps = info_number(info, "global_steps");
  summary.file_ranks = info_number(info, "slices_for");
  const config::Json json = config::parse_json_text(info);
  if (json.contains("saved_at") && json["saved_at"].is_number()) summary.saved_at = json["saved_at"].get<double>();
}

bool is_unfinished(const std::string& name) {
  return name.front() == '.' &&
         (name.ends_with(".saving") || name.ends_with(".removed") || name.ends_with(".replaced"));
}

}  // namespace

std::string_view name_of(TagState state) {
  constexpr std::string_view kNames[] = {"intact", "no manifest", "damaged", "unfinished"};
  return kNames[static_cast<uint8_t>(state)];
}

std::optional<int64_t> info_number(const std::string& info, const char* key) {
  const config::Json json = config::parse_json_text(info);
  if (!json.contains(key) || !json[key].is_number_integer()) return std::nullopt;
  return json[key].get<int64_t>();
}

TagSummary summarize_tag(const std::string& folder) {
  TagSummary summary;
  summary.name = last_name(folder);
  summary.kind = checkpoint_kind(folder);
  summary.saved_at = changed_at(folder).value_or(0.0);
  try {
    add_sizes(folder, summary);
    if (file_size(folder + "/" + kManifestName)) {
      read_info(read_manifest(folder).info, summary);
      const auto problems = verify_tag(folder, /*deep=*/false);
      summary.state = problems.empty() ? TagState::kIntact : TagState::kDamaged;
      if (!problems.empty()) summary.problem = problems.front();
    } else if (summary.kind == CheckpointKind::kNative) {
      summary.state = TagState::kDamaged;
      summary.problem = fmt::format("checkpoint {}: the file {} is missing", folder, kManifestName);
    } else {
      read_model_file(folder, summary);
    }
  } catch (const Error& error) {
    summary.state = TagState::kDamaged;
    summary.problem = error.what();
  }
  return summary;
}

std::vector<TagSummary> summarize_tags(const std::string& save_dir) {
  std::vector<TagSummary> found;
  const std::string latest = latest_tag(save_dir);
  for (const std::string& name : list_directory(save_dir)) {
    const std::string folder = save_dir + "/" + name;
    if (!is_directory(folder)) continue;
    if (is_unfinished(name)) {
      TagSummary summary;
      summary.name = name;
      summary.kind = checkpoint_kind(folder);
      summary.state = TagState::kUnfinished;
      summary.saved_at = changed_at(folder).value_or(0.0);
      add_sizes(folder, summary);
      found.push_back(std::move(summary));
    } else if (name.front() != '.' && checkpoint_kind(folder) != CheckpointKind::kNone) {
      found.push_back(summarize_tag(folder));
      found.back().is_latest = name == latest;
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const TagSummary& a, const TagSummary& b) { return a.saved_at > b.saved_at; });
  return found;
}

}  // namespace deepscale
