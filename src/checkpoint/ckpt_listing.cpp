#include "checkpoint/ckpt_listing.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/tensor_source.h"
#include "memory/memory_plan.h"

namespace deepscale {
namespace {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

/// Columns as wide as their longest entry; numbers to the right.
std::string table(const std::vector<Row>& rows, std::string_view alignment) {
  std::vector<size_t> widths(alignment.size(), 0);
  for (const Row& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      line +=
          alignment[c] == '>' ? fmt::format("{:>{}}  ", row[c], widths[c]) : fmt::format("{:<{}}  ", row[c], widths[c]);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string number_text(const std::optional<int64_t>& number) {
  return number ? std::to_string(*number) : "-";
}

Json number_json(const std::optional<int64_t>& number) {
  return number ? Json(*number) : Json();
}

Json summary_json(const TagSummary& tag) {
  return {{"tag", tag.name},
          {"format", std::string(name_of(tag.kind))},
          {"state", std::string(name_of(tag.state))},
          {"problem", tag.problem},
          {"latest", tag.is_latest},
          {"saved_at", tag.saved_at},
          {"bytes", tag.bytes},
          {"files", tag.files},
          {"world", number_json(tag.ranks)},
          {"slices_for", number_json(tag.file_ranks)},
          {"stage", number_json(tag.zero_level)},
          {"global_steps", number_json(tag.steps)}};
}

bool wanted(const std::string& name, const std::string& pattern) {
  return pattern.empty() || fits_pattern(name, pattern);
}

/// The end of a [...] that begins at `begin`, behind the bracket; npos when it has none.
size_t set_end(std::string_view pattern, size_t begin) {
  const size_t first = begin + (pattern.substr(begin + 1).starts_with("!") ? 2 : 1);
  const size_t end = pattern.find(']', first + 1);
  return end == std::string_view::npos ? end : end + 1;
}

bool in_set(char letter, std::string_view set) {  // without brackets
  const bool negated = set.starts_with("!");
  if (negated) set.remove_prefix(1);
  bool found = false;
  for (size_t i = 0; i < set.size(); ++i) {
    if (i + 2 < set.size() && set[i + 1] == '-') {
      found = found || (set[i] <= letter && letter <= set[i + 2]);
      i += 2;
    } else {
      found = found || set[i] == letter;
    }
  }
  return found != negated;
}

/// Whether one letter fits what stands at `place` of the pattern, which moves on.
bool fits_one(char letter, std::string_view pattern, size_t& place) {
  const size_t end = pattern[place] == '[' ? set_end(pattern, place) : std::string_view::npos;
  if (end != std::string_view::npos) {
    const bool fits = in_set(letter, pattern.substr(place + 1, end - place - 2));
    place = end;
    return fits;
  }
  const bool fits = pattern[place] == '?' || pattern[place] == letter;
  ++place;
  return fits;
}

}  // namespace

std::string age_text(double now, double then) {
  if (then <= 0) return "-";
  const double seconds = std::max(0.0, now - then);
  if (seconds < 120) return fmt::format("{:.0f} s", seconds);
  if (seconds < 120 * 60) return fmt::format("{:.0f} min", seconds / 60);
  if (seconds < 48 * 3600) return fmt::format("{:.0f} h", seconds / 3600);
  return fmt::format("{:.0f} d", seconds / 86400);
}

bool fits_pattern(std::string_view text, std::string_view pattern) {
  size_t at = 0, place = 0, star = std::string_view::npos, star_at = 0;
  while (at < text.size()) {
    if (place < pattern.size() && pattern[place] == '*') {
      star = place++;
      star_at = at;
      continue;
    }
    if (place < pattern.size() && fits_one(text[at], pattern, place)) {
      ++at;
      continue;
    }
    if (star == std::string_view::npos) return false;
    place = star + 1;  // the star takes one letter more
    at = ++star_at;
  }
  while (place < pattern.size() && pattern[place] == '*') ++place;
  return place == pattern.size();
}

std::string tags_table(const std::vector<TagSummary>& tags, double now) {
  std::vector<Row> rows = {{"TAG", "AGE", "SIZE", "FILES", "FORMAT", "WORLD", "STAGE", "STEP", "STATE", ""}};
  std::string problems;
  for (const TagSummary& tag : tags) {
    const std::string world = tag.file_ranks ? fmt::format("{} (files for {})", number_text(tag.ranks), *tag.file_ranks)
                                             : number_text(tag.ranks);
    rows.push_back({tag.name, age_text(now, tag.saved_at), readable_bytes(tag.bytes), std::to_string(tag.files),
                    std::string(tag.kind == CheckpointKind::kNone ? "-" : name_of(tag.kind)), world,
                    number_text(tag.zero_level), number_text(tag.steps), std::string(name_of(tag.state)),
                    tag.is_latest ? "<- latest" : ""});
    if (!tag.problem.empty()) problems += fmt::format("{}: {}\n", tag.name, tag.problem);
  }
  return table(rows, "<>>><>>><<") + problems;
}

std::string tags_json(const std::vector<TagSummary>& tags) {
  Json json = Json::array();
  for (const TagSummary& tag : tags) json.push_back(summary_json(tag));
  return json.dump(2) + "\n";
}

std::string tag_text(const std::string& folder, const std::string& pattern) {
  const TagSummary summary = summarize_tag(folder);
  const auto source = TensorSource::open(folder);
  std::vector<Row> rows = {{"TENSOR", "DTYPE", "SHAPE", "SLICES", "SIZE"}};
  int64_t bytes = 0, count = 0;
  for (const SourceTensor& tensor : source->tensors()) {
    if (!wanted(tensor.name, pattern)) continue;
    const int64_t size = tensor.numel() * size_of(tensor.dtype);
    rows.push_back({tensor.name, std::string(name_of(tensor.dtype)), fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
                    std::to_string(tensor.pieces), readable_bytes(size)});
    bytes += size;
    ++count;
  }
  std::string text = table(rows, "<<<>>");
  for (const auto& [alias, name] : source->aliases()) text += fmt::format("{} is another name of {}\n", alias, name);
  for (const std::string& note : source->notes()) text += fmt::format("note: {}\n", note);
  text += fmt::format("{}: {}, {}, world {}, stage {}, step {}; {} tensors with {}\n", folder, name_of(summary.kind),
                      name_of(summary.state), number_text(summary.ranks), number_text(summary.zero_level),
                      number_text(summary.steps), count, readable_bytes(bytes));
  if (!summary.problem.empty()) text += summary.problem + "\n";
  return text;
}

std::string tag_json(const std::string& folder, const std::string& pattern) {
  Json json = summary_json(summarize_tag(folder));
  const auto source = TensorSource::open(folder);
  Json tensors = Json::array();
  for (const SourceTensor& tensor : source->tensors()) {
    if (!wanted(tensor.name, pattern)) continue;
    tensors.push_back({{"name", tensor.name},
                       {"dtype", std::string(name_of(tensor.dtype))},
                       {"shape", tensor.shape},
                       {"slices", tensor.pieces},
                       {"bytes", tensor.numel() * size_of(tensor.dtype)}});
  }
  json["tensors"] = std::move(tensors);
  json["aliases"] = source->aliases();
  json["notes"] = source->notes();
  return json.dump(2) + "\n";
}

}  // namespace deepscale
