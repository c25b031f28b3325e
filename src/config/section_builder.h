// Writes the table of one option struct: section<S>(...).option("name", &S::member, rule, "one sentence").build().
#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "config/codec.h"
#include "config/table.h"

namespace deepscale::config {

template <class S>
class SectionBuilder {
 public:
  SectionBuilder(UnknownKeys unknown, std::string_view doc) {
    section_.doc = doc;
    section_.unknown = unknown;
    section_.defaults = [] {
      const auto defaults = std::make_unique<S>();
      return write_section(table_of(defaults.get()), defaults.get());
    };
  }

  template <class T>
  SectionBuilder&& option(std::string_view name, T S::*member, Rule rule, std::string_view doc) && {
    Option option;
    option.name = name;
    option.doc = doc;
    option.type = Codec<T>::type(rule);
    option.nested = NestedTable<T>::get();
    option.nested_in_map = kIsMap<T>;
    if constexpr (std::is_same_v<T, RawJson>) {
      option.nullable = (S{}.*member).text == "null";
    } else {
      option.nullable = kIsOptional<T>;
    }
    option.read = [member](const Json& value, void* object, const Rule& rule, const std::string& path,
                           const Reading& reading) {
      Codec<T>::read(value, static_cast<S*>(object)->*member, rule, path, reading);
    };
    option.write = [member](const void* object, const Rule& rule) {
      return Codec<T>::write(static_cast<const S*>(object)->*member, rule);
    };
    option.rule = std::move(rule);
    section_.options.push_back(std::move(option));
    return std::move(*this);
  }

  SectionBuilder&& retired(Retired name) && {
    section_.retired.push_back(name);
    return std::move(*this);
  }

  /// Keys without an option are kept in `member` as one JSON object.
  SectionBuilder&& rest(RawJson S::*member) && {
    section_.keep_rest = [member](Json rest, void* object) {
      (static_cast<S*>(object)->*member).text = json_to_text(rest);
    };
    section_.write_rest = [member](const void* object) {
      return parse_json_text((static_cast<const S*>(object)->*member).text);
    };
    return std::move(*this);
  }

  SectionBuilder&& from_boolean(Json (*expand)(bool on)) && {
    section_.from_boolean = expand;
    return std::move(*this);
  }

  SectionBuilder&& root() && {
    section_.root = true;
    return std::move(*this);
  }

  Section build() && { return std::move(section_); }

 private:
  Section section_;
};

/// A table that refuses unknown keys.
template <class S>
SectionBuilder<S> strict_section(std::string_view doc) {
  return SectionBuilder<S>(UnknownKeys::kError, doc);
}

/// A table that warns about unknown keys.
template <class S>
SectionBuilder<S> lenient_section(std::string_view doc) {
  return SectionBuilder<S>(UnknownKeys::kWarn, doc);
}

}  // namespace deepscale::config
