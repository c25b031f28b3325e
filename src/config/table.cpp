#include "config/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/text.h"

namespace deepscale::config {
namespace {

std::vector<std::string_view> known_names(const Section& section) {
  std::vector<std::string_view> names;
  for (const Option& option : section.options) {
    names.push_back(option.name);
    names.insert(names.end(), option.rule.aliases.begin(), option.rule.aliases.end());
  }
  return names;
}

constexpr size_t kLongestTypo = 100;  // nobody mistyped more; and the search takes time

void report_unknown(const Section& section, const std::string& path, const std::string& key, Problems& problems) {
  const std::string where = join_path(path, printable(key));
  if (section.root && key.find('.') != std::string::npos) {
    problems.warn(where, "has no effect: a key is not split at its dots; write nested objects instead");
    return;
  }
  const std::string_view nearest =
      problems.crowded() || key.size() > kLongestTypo ? "" : nearest_name(key, known_names(section));
  const std::string hint = nearest.empty() ? "remove it" : fmt::format("did you mean '{}'?", nearest);
  if (section.unknown == UnknownKeys::kError) {
    problems.error(where, fmt::format("unknown key; {}", hint));
  } else {
    problems.warn(where, fmt::format("unknown key, ignored; {}", hint));
  }
}

// Applies retired names to a copy of the object; `key` stays usable for duplicates of old and new.
Json without_retired(const Section& section, const Json& value, const std::string& path, Problems& problems) {
  Json object = value;
  for (const Retired& retired : section.retired) {
    const auto found = object.find(std::string(retired.name));
    if (found == object.end()) continue;
    const Json old_value = *found;
    object.erase(found);
    problems.warn(join_path(path, retired.name), fmt::format("deprecated; {}", retired.replacement));
    if (old_value.is_null() || old_value == "auto") continue;
    retired.rewrite(object, old_value, path, problems);
  }
  return object;
}

bool is_old_name(const Option& option, std::string_view key) {
  const auto& old = option.rule.old_names;
  return std::find(old.begin(), old.end(), key) != old.end();
}

// Of sections, the keys that decide what is trained; the default of a size or a limit serves as well as another.
bool decides(std::string_view path) {
  return path.ends_with(".enabled") || path.ends_with(".stage") || path.ends_with(".device");
}

// Whether the value is to be read at all: "auto" and a tolerated null leave the default.
bool is_given(const Section& section, const Option& option, const Json& value, const std::string& path,
              const Reading& reading) {
  if (value == "auto") {
    if (reading.warn_auto && (section.root || decides(path))) {
      reading.problems.warn(path, "is still \"auto\": nothing replaced it, so its default applies");
    }
    return false;
  }
  if (value.is_null() && !option.nullable && (section.root || option.rule.null_is_default)) return false;
  return true;
}

class SectionReader {
 public:
  SectionReader(const Section& section, void* object, const std::string& path, const Reading& reading)
      : section_(section), object_(object), path_(path), reading_(reading) {}

  void read(const Json& value) {
    Json rest = Json::object();
    for (const auto& [key, item] : value.items()) {
      const Option* option = section_.find(key);
      if (option != nullptr) {
        read_option(*option, key, item);
      } else if (section_.keep_rest) {
        rest[key] = item;
      } else {
        report_unknown(section_, path_, key, reading_.problems);
      }
    }
    if (section_.keep_rest && !rest.empty()) section_.keep_rest(std::move(rest), object_);
  }

 private:
  void read_option(const Option& option, const std::string& key, const Json& value) {
    const std::string where = join_path(path_, key);
    if (is_old_name(option, key)) {
      reading_.problems.warn(where, fmt::format("deprecated; use '{}'", option.name));
    }
    if (!is_given(section_, option, value, where, reading_)) return;
    const auto [seen, first] = given_.emplace(option.name, std::make_pair(key, value));
    if (!first) {
      if (seen->second.second != value) {
        reading_.problems.error(
            where, fmt::format("is the same setting as '{}', with another value ({} and {}); keep one",
                               join_path(path_, seen->second.first), show(value), show(seen->second.second)));
      }
      return;
    }
    option.read(value, object_, option.rule, where, reading_);
  }

  const Section& section_;
  void* object_;
  const std::string& path_;
  const Reading& reading_;
  std::map<std::string_view, std::pair<std::string, Json>> given_;
};

}  // namespace

const Option* Section::find(std::string_view name) const {
  for (const Option& option : options) {
    if (option.name == name) return &option;
    const auto has = [&](const std::vector<std::string_view>& names) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    if (has(option.rule.aliases) || has(option.rule.old_names)) return &option;
  }
  return nullptr;
}

void read_section(const Section& section, const Json& value, void* object, const std::string& path,
                  const Reading& reading) {
  if (value.is_boolean() && section.from_boolean != nullptr) {
    const Json object_value = section.from_boolean(value.get<bool>());
    reading.problems.warn(path,
                          fmt::format("deprecated; instead of {} write {}", show(value), json_to_text(object_value)));
    read_section(section, object_value, object, path, reading);
    return;
  }
  if (!value.is_object()) {
    reading.problems.error(path, fmt::format("must be an object like {{\"key\": value}}, found {}", show(value)));
    return;
  }
  SectionReader reader(section, object, path, reading);
  if (section.retired.empty()) {
    reader.read(value);
  } else {
    reader.read(without_retired(section, value, path, reading.problems));
  }
}

Json write_section(const Section& section, const void* object) {
  Json result = Json::object();
  for (const Option& option : section.options) result[std::string(option.name)] = option.write(object, option.rule);
  if (section.write_rest) {
    const Json rest = section.write_rest(object);
    for (const auto& [key, value] : rest.items()) result[key] = value;
  }
  return result;
}

}  // namespace deepscale::config
