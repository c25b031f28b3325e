// The option table: one Section per option struct, one Option per member. Parsing (read_section), printing
// (write_section) and documentation (document.h) all walk these tables; nothing else knows a key's name, type, default
// or range. A table is written in section_*.cpp with SectionBuilder (section_builder.h) and never changes after it is
// built.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/json_text.h"
#include "config/problems.h"

namespace deepscale::config {

struct Section;

/// What a value must satisfy, beside having the type of its member. Built fluently: at_least(1).alias("old_name").
struct Rule {
  std::optional<double> minimum;
  std::optional<double> maximum;
  bool exclusive = false;          ///< the bounds themselves are not allowed
  bool infinity_allowed = false;   ///< integers: Infinity means unlimited (or "not set" where null is allowed)
  bool boolean_is_number = false;  ///< true and false stand for 1 and 0
  bool null_is_default = false;
  bool fold_case = false;
  bool one_is_list = false;    ///< a single value stands for a list of one
  std::string_view null_name;  ///< text that stands for "not set", such as "auto"
  std::string_view default_note;
  std::vector<std::string_view> choices;
  std::vector<std::string_view> aliases;
  std::vector<std::string_view> old_names;  ///< aliases that are deprecated: a warning

  Rule&& unlimited() && { return infinity_allowed = true, std::move(*this); }
  Rule&& bool_number() && { return boolean_is_number = true, std::move(*this); }
  Rule&& null_default() && { return null_is_default = true, std::move(*this); }
  Rule&& any_case() && { return fold_case = true, std::move(*this); }
  Rule&& single() && { return one_is_list = true, std::move(*this); }
  Rule&& or_text(std::string_view name) && { return null_name = name, std::move(*this); }
  Rule&& note(std::string_view text) && { return default_note = text, std::move(*this); }
  Rule&& alias(std::string_view name) && { return aliases.push_back(name), std::move(*this); }
  Rule&& old_name(std::string_view name) && { return old_names.push_back(name), std::move(*this); }
};

inline Rule any() {
  return {};
}
inline Rule alias(std::string_view name) {
  return Rule{}.alias(name);
}
inline Rule at_least(double minimum) {
  Rule rule;
  rule.minimum = minimum;
  return rule;
}
inline Rule between(double minimum, double maximum) {
  Rule rule = at_least(minimum);
  rule.maximum = maximum;
  return rule;
}
inline Rule inside(double minimum, double maximum) {
  Rule rule = between(minimum, maximum);
  rule.exclusive = true;
  return rule;
}
inline Rule one_of(std::vector<std::string_view> choices) {
  Rule rule;
  rule.choices = std::move(choices);
  return rule;
}

/// What travels along while a configuration is read.
struct Reading {
  Problems& problems;
  bool warn_auto = false;  ///< at top level a leftover "auto" deserves a warning
};

/// One member of an option struct.
struct Option {
  std::string_view name;
  std::string_view doc;
  Rule rule;
  std::string type;                 ///< for people: "integer >= 1 or null"
  const Section* nested = nullptr;  ///< table of the member's struct, if it is one (or an optional, list or map of it)
  bool nested_in_map = false;       ///< the struct's table applies to values under names that the user chooses
  bool nullable = false;
  std::function<void(const Json&, void* object, const Rule&, const std::string& path, const Reading&)> read;
  std::function<Json(const void* object, const Rule&)> write;
};

enum class UnknownKeys { kError, kWarn };

/// A name that is no longer used; rewrite() replaces it inside the section's object before the object is read.
struct Retired {
  std::string_view name;
  std::string_view replacement;  ///< for people: "use offload_optimizer.device"
  void (*rewrite)(Json& object, const Json& value, const std::string& path, Problems& problems);
};

struct Section {
  std::string_view doc;
  UnknownKeys unknown = UnknownKeys::kError;
  bool root = false;  ///< the top level: null means "not given" for every key
  std::vector<Option> options;
  std::vector<Retired> retired;
  Json (*defaults)() = nullptr;  ///< every option with its default
  /// What true and false stand for in the place of an object (deprecated); null when they stand for nothing.
  Json (*from_boolean)(bool on) = nullptr;
  /// Keys that only a third party understands are kept, not judged (empty when unknown keys are judged).
  std::function<void(Json rest, void* object)> keep_rest;
  std::function<Json(const void* object)> write_rest;

  const Option* find(std::string_view name) const;
};

/// Reads `value` into `object`, which holds defaults; problems are collected, not thrown.
void read_section(const Section& section, const Json& value, void* object, const std::string& path,
                  const Reading& reading);

/// Every option with its present value.
Json write_section(const Section& section, const void* object);

}  // namespace deepscale::config
