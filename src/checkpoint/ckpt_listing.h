// What `ds_ckpt ls` prints. Pure but for reading the checkpoint.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/tag_summary.h"

namespace deepscale {

/// "3 min", "2 h", "5 d"; empty for a time that is not known. now, then: seconds since 1970.
[[nodiscard]] std::string age_text(double now, double then);
/// Whether a text fits a pattern with * (any characters), ? (one) and [abc], [a-z], [!a].
[[nodiscard]] bool fits_pattern(std::string_view text, std::string_view pattern);

/// Columns, a line per tag; problems below.
[[nodiscard]] std::string tags_table(const std::vector<TagSummary>& tags, double now);
[[nodiscard]] std::string tags_json(const std::vector<TagSummary>& tags);

/// One tag and its tensors whose names fit the pattern ("": all). Throws CheckpointError.
[[nodiscard]] std::string tag_text(const std::string& folder, const std::string& pattern);
[[nodiscard]] std::string tag_json(const std::string& folder, const std::string& pattern);

}  // namespace deepscale
