// How a member's C++ type meets JSON: read with a Rule, write, and name for the documentation.
// Codec<T> exists for bool, int64_t, double, std::string, the enumerations of sections.h, RawJson, every struct with a
// table, and optional, vector and map of those.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <concepts>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "config/sections.h"
#include "config/table.h"

namespace deepscale::config {

template <class T>
concept HasTable = requires(const T* pointer) {
  { table_of(pointer) } -> std::same_as<const Section&>;
};

// Scalars, in codec.cpp: nothing when the value is unusable and the problem has been reported.
std::optional<bool> read_boolean(const Json& value, const std::string& path, Problems& problems);
std::optional<int64_t> read_integer(const Json& value, const Rule& rule, const std::string& path, Problems& problems);
std::optional<double> read_number(const Json& value, const Rule& rule, const std::string& path, Problems& problems);
std::optional<std::string> read_text(const Json& value, const Rule& rule, const std::string& path, Problems& problems);
/// Index of the spelling that was found.
std::optional<size_t> read_choice(const Json& value, const std::vector<std::string_view>& spellings,
                                  const std::vector<std::string_view>& shown, const std::string& path,
                                  Problems& problems);
std::string range_text(const Rule& rule);
std::string choices_text(const std::vector<std::string_view>& choices);

template <class T>
struct Codec;

template <>
struct Codec<bool> {
  static void read(const Json& value, bool& out, const Rule&, const std::string& path, const Reading& reading) {
    if (const auto result = read_boolean(value, path, reading.problems)) out = *result;
  }
  static Json write(bool value, const Rule&) { return value; }
  static std::string type(const Rule&) { return "boolean"; }
};

template <>
struct Codec<int64_t> {
  static void read(const Json& value, int64_t& out, const Rule& rule, const std::string& path, const Reading& reading) {
    if (const auto result = read_integer(value, rule, path, reading.problems)) out = *result;
  }
  static Json write(int64_t value, const Rule&) { return value; }
  static std::string type(const Rule& rule) { return "integer" + range_text(rule); }
};

template <>
struct Codec<double> {
  static void read(const Json& value, double& out, const Rule& rule, const std::string& path, const Reading& reading) {
    if (const auto result = read_number(value, rule, path, reading.problems)) out = *result;
  }
  static Json write(double value, const Rule&) { return value; }
  static std::string type(const Rule& rule) { return "number" + range_text(rule); }
};

template <>
struct Codec<std::string> {
  static void read(const Json& value, std::string& out, const Rule& rule, const std::string& path,
                   const Reading& reading) {
    if (auto result = read_text(value, rule, path, reading.problems)) out = std::move(*result);
  }
  static Json write(const std::string& value, const Rule&) { return value; }
  static std::string type(const Rule& rule) {
    return rule.choices.empty() ? std::string("string") : choices_text(rule.choices);
  }
};

template <class E>
requires std::is_enum_v<E>
struct Codec<E> {
  static void read(const Json& value, E& out, const Rule&, const std::string& path, const Reading& reading) {
    std::vector<std::string_view> spellings;
    for (const auto& [name, ignored] : EnumNames<E>::kValues) spellings.push_back(name);
    const auto index = read_choice(value, spellings, principal_names(), path, reading.problems);
    if (index) out = EnumNames<E>::kValues[*index].second;
  }
  static Json write(E value, const Rule&) {
    for (const auto& [name, known] : EnumNames<E>::kValues) {
      if (known == value) return std::string(name);
    }
    return nullptr;
  }
  static std::string type(const Rule&) { return choices_text(principal_names()); }

 private:
  static std::vector<std::string_view> principal_names() {
    std::vector<std::string_view> names;
    std::vector<E> seen;
    for (const auto& [name, value] : EnumNames<E>::kValues) {
      if (std::find(seen.begin(), seen.end(), value) != seen.end()) continue;
      seen.push_back(value);
      names.push_back(name);
    }
    return names;
  }
};

template <>
struct Codec<RawJson> {
  static void read(const Json& value, RawJson& out, const Rule&, const std::string&, const Reading&) {
    out.text = json_to_text(value);
  }
  static Json write(const RawJson& value, const Rule&) { return parse_json_text(value.text); }
  static std::string type(const Rule&) { return "any"; }
};

template <HasTable S>
struct Codec<S> {
  static void read(const Json& value, S& out, const Rule&, const std::string& path, const Reading& reading) {
    read_section(table_of(&out), value, &out, path, reading);
  }
  static Json write(const S& value, const Rule&) { return write_section(table_of(&value), &value); }
  static std::string type(const Rule&) { return "object"; }
};

template <class T>
struct Codec<std::optional<T>> {
  static void read(const Json& value, std::optional<T>& out, const Rule& rule, const std::string& path,
                   const Reading& reading) {
    const bool unset = value.is_null() || (!rule.null_name.empty() && value == rule.null_name) ||
                       (rule.infinity_allowed && value == std::numeric_limits<double>::infinity());
    if (unset) {
      out.reset();
      return;
    }
    T inner{};
    Codec<T>::read(value, inner, rule, path, reading);
    out = std::move(inner);
  }
  static Json write(const std::optional<T>& value, const Rule& rule) {
    if (value) return Codec<T>::write(*value, rule);
    return rule.null_name.empty() ? Json(nullptr) : Json(std::string(rule.null_name));
  }
  static std::string type(const Rule& rule) {
    return fmt::format("{} or {}", Codec<T>::type(rule),
                       rule.null_name.empty() ? "null" : fmt::format("\"{}\"", rule.null_name));
  }
};

template <class T>
struct Codec<std::vector<T>> {
  static void read(const Json& value, std::vector<T>& out, const Rule& rule, const std::string& path,
                   const Reading& reading) {
    if (!value.is_array() && !rule.one_is_list) {
      reading.problems.error(path, fmt::format("must be a list, found {}; write it in brackets", show(value)));
      return;
    }
    const Json list = value.is_array() ? value : Json::array({value});
    out.clear();
    for (size_t i = 0; i < list.size(); ++i) {
      T item{};
      Codec<T>::read(list[i], item, rule, fmt::format("{}[{}]", path, i), reading);
      out.push_back(std::move(item));
    }
  }
  static Json write(const std::vector<T>& value, const Rule& rule) {
    Json list = Json::array();
    for (const T& item : value) list.push_back(Codec<T>::write(item, rule));
    return list;
  }
  static std::string type(const Rule& rule) {
    return fmt::format("list of {}{}", Codec<T>::type(rule), rule.one_is_list ? " (or a single one)" : "");
  }
};

template <class T>
struct Codec<std::map<std::string, T>> {
  static void read(const Json& value, std::map<std::string, T>& out, const Rule& rule, const std::string& path,
                   const Reading& reading) {
    if (!value.is_object()) {
      reading.problems.error(path, fmt::format("must be an object of named entries, found {}", show(value)));
      return;
    }
    out.clear();
    for (const auto& [name, item] : value.items()) {
      T entry{};
      Codec<T>::read(item, entry, rule, join_path(path, name), reading);
      out.emplace(name, std::move(entry));
    }
  }
  static Json write(const std::map<std::string, T>& value, const Rule& rule) {
    Json object = Json::object();
    for (const auto& [name, item] : value) object[name] = Codec<T>::write(item, rule);
    return object;
  }
  static std::string type(const Rule&) { return "object of named entries"; }
};

/// The table behind a member type: its own, or that of what the optional, list or map holds.
template <class T>
struct NestedTable {
  static const Section* get() {
    if constexpr (HasTable<T>) {
      return &table_of(static_cast<const T*>(nullptr));
    } else {
      return nullptr;
    }
  }
};
template <class T>
struct NestedTable<std::optional<T>> : NestedTable<T> {};
template <class T>
struct NestedTable<std::vector<T>> : NestedTable<T> {};
template <class T>
struct NestedTable<std::map<std::string, T>> : NestedTable<T> {};

template <class T>
inline constexpr bool kIsOptional = false;
template <class T>
inline constexpr bool kIsOptional<std::optional<T>> = true;
template <class T>
inline constexpr bool kIsMap = false;
template <class T>
inline constexpr bool kIsMap<std::map<std::string, T>> = true;

}  // namespace deepscale::config
