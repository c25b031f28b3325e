#include "config/problems.h"

#include <fmt/format.h>

#include "base/error.h"

namespace deepscale::config {
namespace {

constexpr size_t kMaxShown = 20;
constexpr size_t kMaxValueText = 60;

std::string sentence(std::string_view path, std::string_view text) {
  return path.empty() ? fmt::format("configuration: {}", text) : fmt::format("{}: {}", path, text);
}

}  // namespace

void Problems::error(std::string_view path, std::string_view text) {
  errors_.push_back(sentence(path, text));
}

void Problems::warn(std::string_view path, std::string_view text) {
  std::string line = sentence(path, text);
  if (known_warnings_.insert(line).second) warnings_.push_back(std::move(line));
}

void Problems::throw_if_any() const {
  if (errors_.empty()) return;
  if (errors_.size() == 1) throw ConfigError(errors_.front());
  std::string text = fmt::format("{} problems in the configuration:", errors_.size());
  for (size_t i = 0; i < errors_.size() && i < kMaxShown; ++i) text += "\n  - " + errors_[i];
  if (errors_.size() > kMaxShown) text += fmt::format("\n  ... and {} more", errors_.size() - kMaxShown);
  throw ConfigError(text);
}

std::string join_path(std::string_view path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

std::string show(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  std::string text = json_to_text(value);
  if (text.size() > kMaxValueText) {
    size_t end = kMaxValueText;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // keep UTF-8 whole
    text = text.substr(0, end) + "...";
  }
  return value.is_string() ? "the string " + text : text;
}

}  // namespace deepscale::config
