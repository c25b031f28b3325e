// What a person wants to know of the checkpoints in a folder. Only names, sizes, manifests and the small parts of files
// are read. Torch-free.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_kind.h"

namespace deepscale {

enum class TagState : uint8_t {
  kIntact,      ///< all files of its manifest are there with their sizes (their bytes were not read)
  kUnknown,     ///< no manifest: another program's, or one of an older version
  kDamaged,     ///< TagSummary::problem says why
  kUnfinished,  ///< left by a save that was killed or goes on; the next save of the tag removes it
};
/// "intact", "no manifest", "damaged", "unfinished".
[[nodiscard]] std::string_view name_of(TagState state);

struct TagSummary {
  std::string name;  ///< of the folder
  CheckpointKind kind = CheckpointKind::kNone;
  TagState state = TagState::kUnknown;
  std::string problem;
  double saved_at = 0.0;  ///< seconds since 1970; 0: not known
  int64_t bytes = 0;      ///< of all files in it
  int64_t files = 0;
  bool is_latest = false;
  // Where they are written down:
  std::optional<int64_t> ranks;       ///< that saved
  std::optional<int64_t> zero_level;  ///< 0 to 3
  std::optional<int64_t> steps;       ///< global_steps
  std::optional<int64_t> file_ranks;  ///< for how many ranks the slices were cut, where that is another number
};

/// Never throws for what it finds in the folder: that is TagSummary::problem.
[[nodiscard]] TagSummary summarize_tag(const std::string& folder);
/// All checkpoints of a folder, and unfinished ones, newest first.
[[nodiscard]] std::vector<TagSummary> summarize_tags(const std::string& save_dir);

/// The JSON object of a manifest with what is called info there, as (key, whole number) where it is one.
[[nodiscard]] std::optional<int64_t> info_number(const std::string& info, const char* key);

}  // namespace deepscale
