#include "checkpoint/checkpoint_kind.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/manifest.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr char kSeparators[] = "/\\";

CheckpointKind kind_by_names(const std::string& folder) {
  const std::vector<std::string> names = list_directory(folder);
  const auto any = [&](std::string_view begin, std::string_view end) {
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return name.starts_with(begin) && name.ends_with(end); });
  };
  if (any("common.pt", "") && any("rank_", ".pt")) return CheckpointKind::kNative;
  if (any("", "_optim_states.pt")) return CheckpointKind::kDeepSpeed;
  if (is_directory(folder + "/zero") && any("", "_model_states.pt")) return CheckpointKind::kUniversal;
  if (any("", "_model_states.pt")) return CheckpointKind::kDeepSpeed;
  if (any("", ".safetensors")) return CheckpointKind::kSafetensors;
  return CheckpointKind::kNone;
}

}  // namespace

std::string_view name_of(CheckpointKind kind) {
  constexpr std::string_view kNames[] = {"nothing known", "native", "deepspeed", "universal", "safetensors"};
  return kNames[static_cast<uint8_t>(kind)];
}

CheckpointKind checkpoint_kind(const std::string& path) {
  if (path.ends_with(".safetensors") && file_size(path)) return CheckpointKind::kSafetensors;
  if (file_size(path + "/" + kManifestName)) {
    try {
      const std::string layout = manifest_layout(path);
      if (layout == "native") return CheckpointKind::kNative;
      if (layout == "deepspeed") return CheckpointKind::kDeepSpeed;
    } catch (const CheckpointError&) {
      // Damaged: the files' names say what it was.
    }
  }
  return kind_by_names(path);
}

std::string latest_tag(const std::string& save_dir) {
  std::ifstream in(native_path(save_dir + "/latest").c_str(), std::ios::binary);
  std::string text;
  std::getline(in, text);
  return std::string(trimmed(text));
}

std::string find_checkpoint(const std::string& path, const std::string& tag) {
  const bool exists = is_directory(path) || file_size(path).has_value();
  DS_CHECK_AS(CheckpointError, exists, "there is no folder {}", path);
  if (tag.empty() && (checkpoint_kind(path) != CheckpointKind::kNone)) return path;
  const std::string chosen = tag.empty() ? latest_tag(path) : tag;
  if (!chosen.empty()) {
    const std::string folder = path + "/" + chosen;
    if (checkpoint_kind(folder) != CheckpointKind::kNone) return folder;
  }
  std::vector<std::string> known;
  for (const std::string& name : list_directory(path)) {
    if (name.front() != '.' && checkpoint_kind(path + "/" + name) != CheckpointKind::kNone) known.push_back(name);
  }
  const std::string there =
      known.empty() ? "it holds no checkpoint" : fmt::format("it holds: {}", fmt::join(known, ", "));
  DS_CHECK_AS(CheckpointError, !tag.empty(), "{} is no checkpoint, and {}: name a tag with --tag; {}", path,
              chosen.empty() ? "has no file `latest`" : fmt::format("`latest` names {}, which is none", chosen), there);
  ds_throw<CheckpointError>("{} has no checkpoint {}; {}", path, tag, there);
}

std::string last_name(const std::string& path) {
  const size_t end = path.find_last_not_of(kSeparators);
  if (end == std::string::npos) return "";
  const size_t before = path.find_last_of(kSeparators, end);
  return path.substr(before == std::string::npos ? 0 : before + 1,
                     end - (before == std::string::npos ? 0 : before + 1) + 1);
}

std::string folder_above(const std::string& path) {
  const size_t end = path.find_last_not_of(kSeparators);
  const size_t before = end == std::string::npos ? end : path.find_last_of(kSeparators, end);
  if (before == std::string::npos) return ".";
  return before == 0 ? path.substr(0, 1) : path.substr(0, before);
}

}  // namespace deepscale
